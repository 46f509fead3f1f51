"""Validation by the measures of `seecoder eval`: held-out pictures are varied, written and measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seecoder.checks import Rule, check, some_of, whole
from seecoder.evaluation import evaluate, open_network
from seecoder.images.saving import save_image
from seecoder.weights.atomic import atomic_directory
from train.sources.world_data import chunks
from train.stages.previews import sample_row

_LOGGED = ("fid", "kid", "similarity", "clip_i", "dino_i", "lpips", "map_distance")


@dataclass(frozen=True)
class VariationMetrics:
    """What is measured at each evaluation; steps and guidance are those of the preview sheets.

    Attributes:
        networks: Places of networks on this machine, as for `seecoder eval --network`.
        pictures: Held-out pictures that are varied.
        rows: Variations of each.
    """

    networks: tuple[str, ...]
    pictures: int = 64
    rows: int = 1

    def __post_init__(self) -> None:
        is_there = Rule(lambda place: isinstance(place, str) and Path(place).exists(), "a path")
        places = some_of(is_there, "paths of networks on this machine, one or more", minimum=1)
        check(self, networks=places, pictures=whole(1), rows=whole(1))


def variation_figures(stage: Any, settings: VariationMetrics, folder: Path) -> dict[str, float]:
    """Vary held-out pictures by a `SeeCoderStage` as it is, and measure the variations.

    Args:
        stage: The stage; its base, encoder, data and preview settings are used.
        settings: What is varied and measured.
        folder: Of the run. Pictures go to `variations/`, in which `seecoder eval` finds the newest.

    Returns:
        Figures such as `fid_backbone`, by metric and name of the network; none if nothing is held out.
    """
    pixels = stage.data.held_out_pixels[: settings.pictures]
    if not len(pixels):
        return {}
    names = [f"{number:04d}" for number in range(1, len(pixels) + 1)]
    (folder / "variations").mkdir(parents=True, exist_ok=True)
    with atomic_directory(folder / "variations" / "inputs", overwrite=True) as sources:
        for name, image in zip(names, pixels, strict=True):
            save_image(image.cpu() / 255, sources / f"{name}.png")
    newest = folder / "variations" / f"step-{stage.global_step:08d}"
    with atomic_directory(newest, overwrite=True) as temporary:
        for number, part in enumerate(chunks(len(pixels), stage.data.batch_size)):
            context, pooled = stage.encode(stage.data.held_out_batch(part, stage.device), None)
            for row in range(settings.rows):  # noise of no other row, and of no other part
                images = sample_row(stage, number * settings.rows + row, context, pooled, *pixels.shape[-2:])
                for name, image in zip(names[part], images, strict=True):
                    save_image(image, temporary / f"{name}-{name}-seed{row}.png")
    networks = [open_network(Path(place), stage.device) for place in settings.networks]
    made, inputs = (sorted(place.glob("*.png")) for place in (newest, folder / "variations" / "inputs"))
    rows = [row for row in evaluate(made, inputs, networks)["scores"] if row["metric"] in _LOGGED]
    return {f"{row['metric']}_{Path(row['network']).stem}": row["value"] for row in rows}

"""What each group of blocks carries of a picture, and what a text and a mask do, counted in the world.

python -m tests.behaviour.sampling.beside_the_picture     # prints the tables of the pipelines' README, in minutes
"""

from collections.abc import Mapping
from typing import Any

import torch

from data.world.conditioner import BASE, ENCODERS, load_conditioner
from data.world.reader.segmentation import saturated_mask
from data.world.render import render
from data.world.scenes import ATTRIBUTES, Scenes, sample_scenes
from scripts.evaluation.counts import Sampling, markdown_table, read_rates, sample_pictures
from seecoder import SeeCoder, SeeCoderPipeline
from seecoder.encoder.context import ImageSet

COUNT, STEPS, SEED = 48, 25, 9_000_000
COLUMNS = ("count", *ATTRIBUTES, "corr_center_y", "corr_size")
GROUPS = ("down.block_1", "down.block_2", "mid", "up.block_0", "up.block_1")
Rows = dict[str, dict[str, float]]


class World:
    """Pictures of scenes, the same number of other scenes, and what samples all of them."""

    def __init__(self, encoder_name: str = "position_aware") -> None:
        self.scenes = sample_scenes(COUNT, SEED)
        self.others = self.scenes[torch.arange(COUNT).roll(7)]
        encoder = SeeCoder.from_pretrained(ENCODERS / encoder_name).float().eval()
        self.pipe = SeeCoderPipeline.from_base(BASE, encoder=encoder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.pixels = render(self.scenes, 64)
        self.context = self.pipe.encode_context(list(self.pixels))

    def pictures(self, context: torch.Tensor, **options: Any) -> torch.Tensor:
        """One picture a context, with noise of its own."""
        return sample_pictures(self.pipe, context, Sampling(STEPS, batch_size=COUNT), **options)

    def counts(self, context: torch.Tensor, scenes: Scenes, **options: Any) -> dict[str, float]:
        """What the reader finds of the scenes in pictures of contexts."""
        return read_rates(self.pictures(context, **options), scenes)


def groups(world: World) -> Rows:
    """Variations of which some groups of blocks see the picture."""
    scales: dict[str, float | str | Mapping[str, float]] = {"all": 1.0, "none": 0.0}
    scales |= {f"`{group}` alone": {group: 1.0} for group in GROUPS}
    scales |= {f"all but `{group}`": {other: 1.0 for other in GROUPS if other != group} for group in GROUPS}
    scales |= {f"`{name}`": name for name in ("layout", "style")}
    return {name: world.counts(world.context, world.scenes, context_scale=scale) for name, scale in scales.items()}


@torch.no_grad()
def texts(world: World) -> Rows:
    """The tokens of other scenes, the world's text, beside the pictures: what is found of either."""
    tokens = load_conditioner(BASE)(world.others)
    rows: Rows = {}
    for weight in (None, 0.25, 0.5, 0.75):
        name = "side by side" if weight is None else f"weight {weight}"
        made = world.pictures(world.context, text=tokens, text_weight=weight)
        rows[f"{name}, of the picture"] = read_rates(made, world.scenes)
        rows[f"{name}, of the text"] = read_rates(made, world.others)
    return rows


def masks(world: World) -> Rows:
    """Pictures of which only the object counts, and two scenes side by side of which only the left one does."""
    both = torch.cat([world.pixels, render(world.others, 64)], dim=-1)
    left = torch.zeros(64, 128)
    left[:, :64] = 1.0
    objects = [torch.from_numpy(saturated_mask(picture.numpy())).float() for picture in world.pixels]
    rows: Rows = {}
    for name, pictures, chosen in (
        ("the object", world.pixels, objects),
        ("two scenes, no mask", both, [None] * COUNT),
        ("two scenes, the left one", both, [left] * COUNT),
    ):
        entries = [ImageSet([picture], masks=[mask]) for picture, mask in zip(pictures, chosen, strict=True)]
        rows[name] = world.counts(world.pipe.encode_context(entries, image_size=None), world.scenes)
    return rows


def main() -> None:
    world = World()
    for table in (groups, texts, masks):
        print(markdown_table(table(world), COLUMNS), "\n", flush=True)


if __name__ == "__main__":
    main()

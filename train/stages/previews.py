"""Preview sheets: held-out pictures above what the base makes of their contexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import pixels_per_cell
from seecoder.base_model.latents import decode_pixels
from seecoder.checks import check, number, whole
from seecoder.images.saving import save_image, to_pil
from seecoder.images.sheet import contact_sheet
from seecoder.sampling.engine import sample
from train.stages.noise import held_out_keys, normal


@dataclass(frozen=True)
class Preview:
    """What a sheet shows.

    Attributes:
        pictures: Held-out pictures, one column each.
        rows: Variations of each.
        steps: DDIM steps.
        guidance_scale: Weight of classifier-free guidance against the zero context.
    """

    pictures: int = 8
    rows: int = 2
    steps: int = 25
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        check(self, pictures=whole(1), rows=whole(1), steps=whole(1), guidance_scale=number())


def require_preview(preview: Preview | None, metrics: object) -> None:
    """Refuse metrics without the preview whose steps and guidance they take."""
    if metrics is not None and preview is None:
        raise ValueError(f"`metrics`={metrics} must have `preview` beside it, whose steps and guidance it takes.")


def write_sheet(stage: Any, inputs: Sequence[Tensor], context: Tensor, pooled: Tensor | None, path: Path) -> Tensor:
    """Sample variations with a `SeeCoderStage`'s base and write the sheet as PNG.

    Args:
        stage: The stage; its preview settings, UNet, autoencoder and seed are used.
        inputs: The first rows, (N, 3, H, W) uint8 each: the pictures, of pairs the references above them.
        context: (N, tokens, width) their contexts.
        pooled: (N, pooled_dim) or None.
        path: The file.

    Returns:
        (rows * N, 3, H, W) in [0, 1]: the variations, row by row.
    """
    height, width = inputs[-1].shape[-2:]
    variations = [sample_row(stage, row, context, pooled, height, width) for row in range(stage.preview.rows)]
    save_rows([*(pixels.cpu() / 255 for pixels in inputs), *variations], path)
    return torch.cat(variations)


def save_rows(rows: Sequence[Tensor], path: Path) -> None:
    """Write rows of pictures of one size, each (N, 3, H, W) in [0, 1], as a sheet in PNG."""
    path.parent.mkdir(exist_ok=True)
    sheet = contact_sheet([[to_pil(image) for image in row] for row in rows], cell=max(rows[0].shape[-2:]))
    save_image(sheet, path)


@torch.no_grad()
def sample_row(stage: Any, row: int, context: Tensor, pooled: Tensor | None, height: int, width: int) -> Tensor:
    """Sample one variation of each context, with plain DDIM and guidance.

    Args:
        stage: Holds UNet, autoencoder, scheduler config and settings.
        row: Number of the row, from 0; each has its own start noise.
        context: (N, tokens, width).
        pooled: (N, pooled_dim) or None.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        (N, 3, height, width) in [0, 1], on the CPU.
    """
    count, dtype = len(context), stage.unet.dtype
    factor = pixels_per_cell(stage.vae)
    shape = (stage.unet.config["in_channels"], height // factor, width // factor)
    keys = held_out_keys(slice(0, count), epoch=-2 - row)  # noise of no training sample and no evaluation

    def added(view: Any, branch: str, latent_size: Any) -> dict[str, Any]:
        """What an SDXL base reads beside the context; the zero context has a zero vector."""
        if pooled is None:
            return {}
        own = pooled if branch == "positive" else torch.zeros_like(pooled)
        return added_conditions(own.to(dtype), (height, width, 0, 0, height, width))

    def predict(latents: Tensor, timestep: Tensor, context: Tensor, **conditions: Any) -> Tensor:
        return stage.unet(latents, timestep, encoder_hidden_states=context, **conditions).sample

    latents = sample(
        predict,
        stage.schedule.scheduler,
        latent_shape=(count, *shape),
        native_size=shape[1:],
        context=context.to(dtype),
        negative_context=torch.zeros_like(context, dtype=dtype),
        num_inference_steps=stage.preview.steps,
        guidance_scale=stage.preview.guidance_scale,
        latents=normal(stage.seed, "preview", keys, shape).to(context.device),
        added_conditions=added,
    )
    return decode_pixels(stage.vae, latents).cpu()


def score_previews(pictures: Tensor, scenes: Any) -> dict[str, float]:
    """What the world's reader counts on variations.

    Args:
        pictures: (rows * N, 3, H, W) in [0, 1], row by row.
        scenes: The N scenes of the inputs.

    Returns:
        Fraction of pictures with one object, and with the input's attributes, as `preview_count`, `preview_shape`, ...
    """
    from data.world.reader.readings import agreement, read
    from data.world.scenes import ATTRIBUTES

    rows = len(pictures) // len(scenes)
    right = agreement(read(pictures), {name: getattr(scenes, name).repeat(rows) for name in ATTRIBUTES})
    return {f"preview_{name}": float(right[name].mean()) for name in ("count", *ATTRIBUTES, "all")}

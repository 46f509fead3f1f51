"""Preview sheets: held-out pictures above what the base makes of their contexts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import pixels_per_cell
from seecoder.base_model.latents import decode_pixels
from seecoder.weights.atomic import atomic_path
from train.stages.noise import normal

_GAP = 4  # pixels between pictures


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


def write_sheet(stage: Any, pixels: Tensor, context: Tensor, pooled: Tensor | None, path: Path) -> Tensor:
    """Sample variations with a `SeeCoderStage`'s base and write the sheet as PNG.

    Args:
        stage: The stage; its preview settings, UNet, autoencoder and seed are used.
        pixels: (N, 3, H, W) uint8 inputs, the first row.
        context: (N, tokens, width) their contexts.
        pooled: (N, pooled_dim) or None.
        path: The file.

    Returns:
        (rows * N, 3, H, W) in [0, 1]: the variations, row by row.
    """
    rows, variations = [pixels.cpu()], []
    for row in range(stage.preview.rows):
        keys = torch.stack([torch.full((len(pixels),), -2 - row), torch.arange(len(pixels))], dim=1)
        pictures = sample(stage, context, pooled, keys, pixels.shape[-2], pixels.shape[-1])
        variations.append(pictures.cpu())
        rows.append((pictures * 255).round().to(torch.uint8).cpu())
    columns = [torch.nn.functional.pad(picture, (0, _GAP, 0, _GAP), value=255) for picture in torch.cat(rows)]
    lines = [torch.cat(columns[start : start + len(pixels)], dim=2) for start in range(0, len(columns), len(pixels))]
    sheet = torch.cat(lines, dim=1)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    return torch.cat(variations)


def score_previews(pictures: Tensor, scenes: Any) -> dict[str, float]:
    """What the world's reader counts on variations.

    Args:
        pictures: (rows * N, 3, H, W) in [0, 1], row by row.
        scenes: The N scenes of the inputs.

    Returns:
        Shares of pictures with one object, and with the input's attributes, as `preview_count`, `preview_shape`, ...
    """
    from data.world.reader.readings import agreement, read
    from scripts.evaluation.counts import ATTRIBUTES, truth

    rows = len(pictures) // len(scenes)
    right = agreement(read(pictures), {name: values.repeat(rows) for name, values in truth(scenes).items()})
    return {f"preview_{name}": float(right[name].mean()) for name in ("count", *ATTRIBUTES, "all")}


@torch.no_grad()
def sample(stage: Any, context: Tensor, pooled: Tensor | None, keys: Tensor, height: int, width: int) -> Tensor:
    """Plain DDIM with guidance; start noise by key; (N, 3, H, W) in [0, 1].

    Args:
        stage: Holds UNet, autoencoder, scheduler config and settings.
        context: (N, tokens, width).
        pooled: (N, pooled_dim) or None.
        keys: (N, 2) of the start noise.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
    """
    scheduler: Any = DDIMScheduler.from_config(dict(stage.scheduler_config))
    scheduler.set_timesteps(stage.preview.steps, device=context.device)
    factor = pixels_per_cell(stage.vae)
    shape = (stage.unet.config["in_channels"], height // factor, width // factor)
    latents = normal(stage.seed, "preview", keys, shape).to(context.device)
    dtype, scale = stage.unet.dtype, stage.preview.guidance_scale
    both = torch.cat([torch.zeros_like(context), context]).to(dtype)
    extra: dict[str, Any] = {}
    if pooled is not None:
        pooled = torch.cat([torch.zeros_like(pooled), pooled]).to(dtype)
        extra = added_conditions(pooled, (height, width), (0, 0), (height, width))
    for time in scheduler.timesteps:
        inputs = torch.cat([latents, latents]).to(dtype)
        none, own = stage.unet(inputs, time, encoder_hidden_states=both, **extra).sample.float().chunk(2)
        latents = scheduler.step(none + scale * (own - none), time, latents).prev_sample
    return decode_pixels(stage.vae, latents)

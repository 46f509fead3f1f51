"""What the reader counts on samples of the world's base: the project's claims as numbers.

Every comparison is paired: the same scenes and the same start noise for an encoder's context, for the true attribute
tokens (the ceiling) and for no condition at all, so differences are those of the context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.world.reader.readings import Reading, rates, read
from data.world.scenes import Scenes
from scripts.results import markdown
from seecoder import SeeCoder, SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import is_sdxl
from seecoder.base_model.latents import encode_posterior
from seecoder.base_model.loading import load_config
from train.stages.noise_schedule import NoiseSchedule

Told = Tensor | Mapping[str, Tensor]  # a context (N, tokens, width), or what a call gets by name (`told`)


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled from a base.

    Attributes:
        steps: Scheduler steps.
        guidance_scale: Weight of classifier-free guidance; 1 switches it off.
        seed: Picture i starts from the noise of seed `seed + i`.
        batch_size: Pictures sampled at once; changes nothing but memory.
        height: Height in pixels; the base's own when None.
        width: Width in pixels; the base's own when None.
    """

    steps: int = 50
    guidance_scale: float = 4.0
    seed: int = 0
    batch_size: int = 32
    height: int | None = None
    width: int | None = None


def open_world(base: Path, encoder: SeeCoder | None = None) -> SeeCoderPipeline | SeeCoderXLPipeline:
    """Open a base of the world in float32, with the pipeline of its family and no progress bar."""
    family = SeeCoderXLPipeline if is_sdxl(load_config(base, "unet")) else SeeCoderPipeline
    pipeline = family.from_base(base, encoder=encoder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def told(context: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    """What a call of a pipeline is given: a context (N, tokens, width), and for SDXL's family pooled vectors (N, P)."""
    return {"context": context} | ({} if pooled is None else {"pooled_context": pooled})


def sample_pictures(
    pipeline: Any, context: Told, sampling: Sampling, progress: Callable[[int], object] | None = None, **options: Any
) -> Tensor:
    """Sample one picture per context with a pipeline of ours.

    Args:
        pipeline: The pipeline; its own progress bar should be switched off.
        context: (N, tokens, width), or what `told` makes of it.
        sampling: Steps, guidance, seeds, size.
        progress: Called with the number of new pictures after each batch.
        **options: Handed to the pipeline, for instance `method=`.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    given = context if isinstance(context, Mapping) else {"context": context}
    count, pictures = len(given["context"]), []
    for start in range(0, count, sampling.batch_size):
        end = min(start + sampling.batch_size, count)
        generators = [torch.Generator().manual_seed(sampling.seed + index) for index in range(start, end)]
        pictures.append(
            pipeline(
                **{name: values[start:end] for name, values in given.items()},
                height=sampling.height,
                width=sampling.width,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                generator=generators,
                **{"output_type": "pt", **options},
            ).images
        )
        if progress is not None:
            progress(end - start)
    return torch.cat(pictures)


def layout_agreement(readings: Sequence[Reading], scenes: Scenes) -> dict[str, float]:
    """Pearson correlation, over pictures with an object, of its box with the scene's place and size.

    Returns:
        "center_y", "center_x" and "size", each in [-1, 1]; NaN where there are too few objects to tell.
    """
    rows = [index for index, reading in enumerate(readings) if reading.main is not None]
    if len(rows) < 2:
        return dict.fromkeys(("center_y", "center_x", "size"), float("nan"))
    boxes = np.array([reading.main.box for reading in readings if reading.main is not None])
    reads = {
        "center_y": (boxes[:, 0] + boxes[:, 2]) / 2,
        "center_x": (boxes[:, 1] + boxes[:, 3]) / 2,
        "size": np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]),
    }
    true = {"center_y": scenes.center_y, "center_x": scenes.center_x, "size": scenes.radius}
    with np.errstate(invalid="ignore", divide="ignore"):  # all alike
        return {name: float(np.corrcoef(values, true[name].numpy()[rows])[0, 1]) for name, values in reads.items()}


def read_rates(pictures: Tensor, scenes: Scenes) -> dict[str, float]:
    """Read pictures and compare them with their scenes: `rates`, `layout_agreement` (as "corr_…"), and "outlined".

    The last is the share of pictures whose object has a line around it, as the style of that name draws them.
    """
    readings = read(pictures)
    outlined = float(np.mean([reading.outline > 0.5 for reading in readings]))
    layout = {f"corr_{name}": value for name, value in layout_agreement(readings, scenes).items()}
    return rates(readings, scenes) | layout | {"outlined": outlined}


@torch.no_grad()
def denoising_losses(
    pipeline: Any, latents: Tensor, contexts: Mapping[str, Mapping[str, Tensor]], seed: int = 0, batch_size: int = 64
) -> dict[str, Tensor]:
    """Noise-prediction losses of several contexts on the same (latent, timestep, noise) triples.

    The loss itself is dominated by the timestep; its difference between two contexts on the same triples is not, and
    needs few pictures.

    Args:
        pipeline: A pipeline whose `unet` and `scheduler` are used.
        latents: (N, C, h, w) scaled latents of the pictures.
        contexts: Per name, what `told` makes of (N, tokens, width); of whole pictures for SDXL's family.
        seed: Seed of timesteps and noise; timesteps are spread evenly over the schedule.
        batch_size: Samples at once.

    Returns:
        Per name, (N,) mean squared errors.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    schedule = NoiseSchedule(pipeline.scheduler.config)
    even = torch.arange(len(latents)) * schedule.num_timesteps // len(latents)
    timesteps = even[torch.randperm(len(latents), generator=generator)]
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.target(latents, noise, timesteps)
    dtype, size = pipeline.unet.dtype, tuple(side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    losses: dict[str, list[Tensor]] = {name: [] for name in contexts}
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        for name, given in contexts.items():
            context, pooled = given["context"][part].to(dtype), given.get("pooled_context")
            added = {} if pooled is None else added_conditions(pooled[part].to(dtype), (*size, 0, 0, *size))
            output = pipeline.unet(noisy[part].to(dtype), timesteps[part], context, **added).sample.float()
            losses[name].append((output - target[part]).square().flatten(1).mean(1))
    return {name: torch.cat(parts) for name, parts in losses.items()}


@torch.no_grad()
def encode_latents(pipeline: Any, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Posterior means of pictures, scaled as the UNet expects; (N, 3, H, W) in [0, 1] -> (N, C, h, w)."""
    return torch.cat([encode_posterior(pipeline.vae, 2 * part - 1)[0] for part in pixels.split(batch_size)])


def markdown_table(rows: dict[str, dict[str, float]], columns: Sequence[str]) -> str:
    """Format named rows of shares in [0, 1] as percentages, other numbers with two decimals."""

    def cell(name: str, value: Any) -> str:
        is_plain = name in ("objects", "specks", "horizons") or name.startswith(("corr_", "excess"))
        return str(value) if not name else f"{value:.2f}" if is_plain else f"{100 * value:.1f}"

    return markdown([{"": label, **row} for label, row in rows.items()], ("", *columns), cell)

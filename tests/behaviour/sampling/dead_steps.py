"""What the steps change that DemoFusion leaves out (`skip_dead_steps`), in the world.

python -m tests.behaviour.sampling.dead_steps      # prints the rows; some twenty minutes on two cores
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.world.conditioner import BASE, load_conditioner
from data.world.scenes import sample_scenes
from scripts.evaluation.highres import counted_windows
from seecoder import SeeCoderPipeline
from seecoder.pipelines.autoencoding import decode_latents
from seecoder.sampling import DemoFusion

SIZES = ((2, 4), (4, 2))  # times the training side, and scenes
SEED, STEPS, GUIDANCE = 7_000_000, 50, 4.0
THRESHOLDS = (1e-3, 1e-4, 1e-6)  # the default, and what is left of the difference further down
LEVELS = 127.5  # of 255, for pixels in [-1, 1]


@dataclass(frozen=True)
class Sampled:
    """One way of making the same pictures: latents, pixels in [-1, 1], and evaluations of both branches a picture."""

    latents: torch.Tensor
    pixels: torch.Tensor
    evaluations: float


@torch.no_grad()
def dead_steps(
    sizes: Sequence[tuple[int, int]] = SIZES, thresholds: Sequence[float] = THRESHOLDS, steps: int = STEPS
) -> list[dict[str, Any]]:
    """Distance to the pictures of all steps, leaving out those whose influence is below a threshold.

    Nothing is left out "below" 0: there the micro-batches are others, which is what rounding does.
    """
    pipeline: Any = SeeCoderPipeline.from_base(BASE, encoder=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    conditioner, rows = load_conditioner(), []
    for factor, count in sizes:
        context = conditioner(sample_scenes(count, SEED))
        side = factor * pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        options = {"context": context, "height": side, "width": side, "num_inference_steps": steps}
        everything = _sampled(pipeline, 0.0, **options)
        for threshold in (0.0, *thresholds):
            found = _sampled(pipeline, threshold, **options, view_batch_size=7 if threshold == 0.0 else 16)
            rows.append({"pixels": side, "scenes": count, "below": threshold} | _distance(found, everything))
    return rows


def _sampled(pipeline: Any, threshold: float, **options: Any) -> Sampled:
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(len(options["context"]))]
    native = pipeline.unet.config.sample_size
    with counted_windows(pipeline.unet, (native, native)) as windows:
        latents = pipeline(
            guidance_scale=GUIDANCE,
            generator=generators,
            method=DemoFusion(skip_dead_steps=threshold),
            output_type="latent",
            **options,
        ).images
    pixels = decode_latents(pipeline.vae, latents)[0].clamp(-1.0, 1.0)
    return Sampled(latents, pixels, sum(windows) / 2 / len(latents))


def _distance(found: Sampled, everything: Sampled) -> dict[str, float]:
    levels = (found.pixels - everything.pixels).abs() * LEVELS
    return {
        "evaluations": found.evaluations,
        "relative_rms": float((found.latents - everything.latents).norm() / everything.latents.norm()),
        "mean_levels": float(levels.mean()),
        "largest_levels": float(levels.max()),
    }


if __name__ == "__main__":
    print(*dead_steps(), sep="\n")

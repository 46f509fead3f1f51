"""The pipeline's own time beside that of diffusers', at Stable Diffusion 1.5's native size and with its scheduler.

python -m tests.behaviour.sampling.beside_stock     # prints milliseconds of the processor and their ratio, in a minute

The UNet has Stable Diffusion's blocks, but gives back what it gets, and the results are latents, so that what is left
is the pipelines' own work and the scheduler's. Runs are made in turns, and processor time is counted, so that other
programs matter little.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from seecoder import SeeCoderPipeline
from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE

STEPS, TURNS = (1, 50), 30
SCHEDULE = {name: value for name, value in STABLE_DIFFUSION_SCHEDULE.items() if name != "clip_sample"}
CONTEXT = torch.randn(1, 148, 32, generator=torch.Generator().manual_seed(0))


def calls() -> dict[str, Any]:
    """Calls of both pipelines that lack the number of steps, with the same parts."""
    unet: Any = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8,) * 4,  # as many modules as Stable Diffusion's, all of which both pipelines look at
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    unet.forward = lambda sample, *_, **__: (sample,)
    levels: dict[str, Any] = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae: Any = AutoencoderKL(**levels, norm_num_groups=4)
    scheduler: Any = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    ours: Any = SeeCoderPipeline(vae, unet, scheduler)
    absent: Any = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    stock: Any = StableDiffusionPipeline(vae, unet=unet, scheduler=scheduler, **absent, requires_safety_checker=False)
    for pipeline in (ours, stock):
        pipeline.set_progress_bar_config(disable=True)
    given = {"guidance_scale": 4.0, "output_type": "latent"}
    return {
        "ours": partial(ours, context=CONTEXT, **given),
        "stock": partial(stock, prompt_embeds=CONTEXT, negative_prompt_embeds=torch.zeros_like(CONTEXT), **given),
    }


def measure(turns: int = TURNS) -> Iterator[dict[str, float]]:
    """Medians of milliseconds and of the ratios of two runs of one turn, for each number of steps."""
    pipelines = calls()
    for steps in STEPS:
        taken: dict[str, list[float]] = {name: [] for name in pipelines}
        for turn in range(turns + 1):  # the first does not count
            for name in sorted(pipelines, reverse=turn % 2 == 1):
                started = time.process_time()
                pipelines[name](num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
                taken[name].append(1000 * (time.process_time() - started))
        ratios = [one / other for one, other in zip(taken["ours"][1:], taken["stock"][1:], strict=True)]
        medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
        yield {"steps": steps, **medians, "ratio": statistics.median(ratios)}


def main() -> None:
    torch.set_num_threads(1)
    for row in measure():
        print(
            "{steps:g} steps: {ours:.2f} ms, diffusers' own {stock:.2f} ms, ratio {ratio:.3f}".format(**row), flush=True
        )


if __name__ == "__main__":
    main()

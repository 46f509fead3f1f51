#!/usr/bin/env python
"""What sampling costs on the CPU besides the network: evaluations and overhead. `gpu.py` has seconds on a GPU.

    scripts/benchmarks/sampling.py --out scripts/benchmarks/sampling.json

1. Evaluations of every method at SDXL's sizes, counted on a network that does nothing, beside the arithmetic.
2. Share of a run outside the UNet and the VAE, with a UNet of middling size on the CPU; `--steps` steps.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

import torch

from scripts.benchmarks.goals import OVERHEAD_FRACTION
from scripts.benchmarks.random_networks import autoencoder, small_unet, stable_diffusion_scheduler
from scripts.results import markdown, versions, write_json
from seecoder import SeeCoderPipeline
from seecoder.replacing import replaced
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion, sample
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.methods.scalecrafter.layer_settings import PUBLISHED

NATIVE = 128  # SDXL's side in cells
STEPS = 50  # that the arithmetic is for
REPETITIONS = 3  # of each overhead run, whose median counts


def damped() -> ScaleCrafter:
    """The published settings of SDXL at four times the native side, on layers that every UNet of three levels has."""
    found = PUBLISHED["sdxl", 4.0]
    return ScaleCrafter(found.dilation, found.dilate_tau, found.progressive, found.damping, found.damp_tau)


# Method, then evaluations at 2048 and at 4096: one network pass over one native window (or the same area), one branch
# of two. A third branch (damping) counts a half. Published counts where they differ: ScaleCrafter 1,360 at 4096, as it
# evaluates a branch that it does not use; DemoFusion 700 and 5,650, as it computes steps whose result it discards.
# SyncDiffusion's N windows go through once a step, and in the first ten the anchor once and the others twice more, as
# their gradient's checkpoint does it again; 10 * (N - 1) backward passes come on top.
ARITHMETIC: tuple[tuple[str, Callable[[int], Any], float, float], ...] = (
    ("plain", lambda scale: None, 50 * 4, 50 * 16),
    ("MultiDiffusion, stride 64", lambda scale: MultiDiffusion(stride=64), 50 * 3**2, 50 * 7**2),
    ("MultiDiffusion, stride 16", lambda scale: MultiDiffusion(stride=16), 50 * 9**2, 50 * 25**2),
    ("DemoFusion, all steps", lambda scale: DemoFusion(skip_dead_steps=False), 50 + 50 * 13, 700 + 50 * 34 + 50 * 65),
    ("DemoFusion", lambda scale: DemoFusion(), 50 + 39 * 13, 50 + 39 * (13 + 34 + 65)),
    ("ScaleCrafter", lambda scale: ScaleCrafter() if scale == 2 else damped(), 50 * 4, (50 + 35 / 2) * 16),
    ("HiDiffusion", lambda scale: HiDiffusion(), 50 * 4, 50 * 16),
    ("RectifiedHR", lambda scale: RectifiedHR(resize_in="latents"), 40 + 10 * 4, 40 + 5 * 4 + 5 * 16),
    ("SyncDiffusion", lambda scale: SyncDiffusion(loss=pyramid_distance), 70 * 5**2 - 10, 70 * 13**2 - 10),
)


class Network:
    """A denoiser that predicts nothing, and counts windows."""

    def __init__(self) -> None:
        self.windows = 0.0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, **_: Any) -> torch.Tensor:
        """No noise anywhere, and a gradient through it."""
        self.windows += latents.shape[0] * latents.shape[2] * latents.shape[3] / NATIVE**2
        return latents * torch.zeros_like(latents)  # not times 0.0: gradients must need what a checkpoint forgot


def run(network: Any, method: Any, side: int, steps: int = STEPS, **options: Any) -> torch.Tensor:
    """One run at `side` cells, guided, from a fixed seed."""
    context = torch.zeros(1, 4, 128)
    return sample(
        network,
        stable_diffusion_scheduler(),
        latent_shape=(1, 4, side, side),
        native_size=(NATIVE, NATIVE),
        context=context,
        negative_context=context,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
        method=method,
        **options,
    )


def evaluations() -> list[dict[str, Any]]:
    """Counted and computed evaluations of every method."""
    unet, rows = small_unet((8, 8, 8), side=NATIVE, groups=4), []  # methods patch it; the counting network is called
    for name, make, at_2048, at_4096 in ARITHMETIC:
        for scale, expected in ((2, at_2048), (4, at_4096)):
            network = Network()
            run(network, make(scale), scale * NATIVE, unet=unet, decoder=lambda latents: latents[:, :3])
            counted = network.windows / 2
            rows.append(
                {
                    "method": name,
                    "pixels": 1024 * scale,
                    "counted": counted,
                    "arithmetic": expected,
                    "equal": abs(counted - expected) < 0.5,
                }
            )
    return rows


class Clock:
    """Seconds spent inside chosen functions, those that one calls in another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, owner: Any, name: str) -> AbstractContextManager[Any]:
        """Time all calls of `owner.name` inside the block."""
        original = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started, self._depth = time.perf_counter(), self._depth + 1
            try:
                return original(*arguments, **keywords)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - started

        return replaced(owner, **{name: timed})


def overhead(steps: int) -> list[dict[str, Any]]:
    """Seconds of whole runs of the pipeline at twice the native side, and the share outside UNet and VAE.

    SyncDiffusion's gradients run backwards through both; that time counts as theirs, with the loss's small part in it.
    """
    torch.manual_seed(0)
    unet = small_unet((128, 192, 256), side=32)
    vae = autoencoder((32, 64, 64), norm_num_groups=8)
    pipeline: Any = SeeCoderPipeline(vae=vae, unet=unet, scheduler=stable_diffusion_scheduler(), encoder=None)
    pipeline.set_progress_bar_config(disable=True)
    context, rows = torch.randn(1, 4, 128), []
    methods: dict[str, Any] = {
        "plain": None,
        "MultiDiffusion": MultiDiffusion(),
        "DemoFusion": DemoFusion(),
        "ScaleCrafter": ScaleCrafter(),
        "HiDiffusion": HiDiffusion(),
        "RectifiedHR": RectifiedHR(),
        "ScaleCrafter + DemoFusion": [ScaleCrafter(), DemoFusion(use_windows=False)],
        "ScaleCrafter + RectifiedHR": [ScaleCrafter(), RectifiedHR()],
        "SyncDiffusion": SyncDiffusion(),
    }
    for name, method in methods.items():
        shares = [_one_share(pipeline, method, context, steps) for _ in range(REPETITIONS)]
        seconds, share = sorted(shares, key=lambda entry: entry[1])[REPETITIONS // 2]
        row = {"method": name, "steps": steps, "seconds": seconds, "share_outside": share}
        rows.append(row | {"within_goal": share <= OVERHEAD_FRACTION})
    return rows


def _one_share(pipeline: Any, method: Any, context: torch.Tensor, steps: int) -> tuple[float, float]:
    """Seconds of a run, and the share of it outside UNet and VAE."""
    unet, vae, clock = pipeline.unet, pipeline.vae, Clock()
    started = time.perf_counter()
    with ExitStack() as stack:
        for owner, name in ((unet, "forward"), (vae, "decode"), (vae, "encode"), (torch.autograd, "grad")):
            stack.enter_context(clock.around(owner, name))
        pipeline(
            context=context,
            height=256,
            width=256,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
            method=method,
            output_type="pt",
        )
    seconds = time.perf_counter() - started
    return seconds, 1.0 - clock.seconds / seconds


def shortfalls(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What is not as it should be, a line each."""
    for row in found.get("evaluations", ()):
        if not row["equal"]:
            yield f"{row['method']} at {row['pixels']}: {row['counted']:g} evaluations, {row['arithmetic']:g} expected"
    for row in found.get("overhead", ()):
        if not row["within_goal"]:
            outside = f"{row['share_outside']:.1%} of the run outside UNet and VAE"
            yield f"{row['method']}: {outside}, goal {OVERHEAD_FRACTION:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers (default: only printed)")
    parser.add_argument("--steps", type=int, default=6, help="steps of the CPU's overhead runs (default: %(default)s)")
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "evaluations": evaluations,
        "overhead": lambda: overhead(options.steps),
    }
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts), help="(default: all)")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.parts:
        found[name] = parts[name]()
        print(f"\n{name}\n\n{markdown(found[name])}")
        about = versions("torch", "diffusers") | {"threads": torch.get_num_threads()}
        write_json(options.out, {"about": about} | found)
    missed = list(shortfalls(found))
    print("", *missed, sep="\n")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()

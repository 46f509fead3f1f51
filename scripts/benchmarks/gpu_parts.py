"""The parts of the GPU kit, each a process of its own: `python -m scripts.benchmarks.gpu_parts PART FILE`.

Every row is written as soon as it is measured. `gpu.py` says what the parts are for.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.random_networks import (
    SDXL_UNET,
    SDXL_VAE_CHANNELS,
    TOY_SDXL_UNET,
    autoencoder,
    stable_diffusion_scheduler,
    unet,
)
from scripts.benchmarks.timed_network import TimedNetwork, median_seconds, synchronise
from scripts.benchmarks.training_inputs import TOY_ENCODER, sd15_workload, toy_workload
from scripts.benchmarks.training_levers import ALL, NAIVE, Loop, measured_peak
from seecoder import SeeCoder
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import pooled_width
from seecoder.pipelines.autoencoding import decode_latents
from seecoder.sampling import DemoFusion, RectifiedHR, ScaleCrafter, sample
from train.estimate.hardware import DEVICES

STEPS, GUIDANCE = 50, 5.0
SCALES = (2, 4)  # times SDXL's native side of 1024 pixels
METHODS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "DemoFusion": DemoFusion,
    "ScaleCrafter": ScaleCrafter,
    "scalecrafter,rectifiedhr": lambda: [ScaleCrafter(), RectifiedHR(resize_in="latents")],
}
NAMESAKES = ("mig", "laptop", "4090d")  # slices and namesakes of a device, with a peak of their own
# What the published code evaluates at 2048 and 4096: DemoFusion computes steps whose result it discards.
PUBLISHED = {"plain": (200, 800), "DemoFusion": (700, 5650), "ScaleCrafter": (200, 1360)}


class Findings:
    """What a part has measured so far, in a file.

    Args:
        path: The file.
        smoke: Toy sizes on the CPU.
    """

    def __init__(self, path: Path, smoke: bool) -> None:
        self.path, self.smoke = path, smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.found: dict[str, Any] = {"rows": []}

    def note(self, **values: Any) -> None:
        """Keep something that is about the whole part."""
        self.found |= values
        self.path.write_text(json.dumps(self.found))

    def row(self, measure: Callable[[], dict[str, Any]], **about: Any) -> None:
        """Measure and keep a row; one that does not fit in memory says so and costs the others nothing."""
        if not self.smoke:
            torch.cuda.reset_peak_memory_stats()
        try:
            row = measure() | {"peak_gib": 0.0 if self.smoke else torch.cuda.max_memory_allocated() / 2**30}
        except torch.OutOfMemoryError:
            row = {"peak_gib": None, "problem": "out of memory"}
            torch.cuda.empty_cache()
        self.note(rows=[*self.found["rows"], about | row])


def gpu_tests(findings: Findings) -> None:
    """The tests marked `gpu`; on a CPU they are skipped, and that is what is counted."""
    file = "tests/behaviour/sampling/test_gpu.py"
    # The project's own options need plugins that such a machine may not have.
    own = ("-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *own, file], capture_output=True, text=True, check=False
    )
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", "".join(last))}
    print(done.stdout, file=sys.stderr)
    findings.note(rows=[{"passed": 0, "failed": 0, "skipped": 0} | counts], notes={"pytest": "".join(last)})
    if counts.get("failed") or counts.get("error") or not counts:
        raise SystemExit("the tests marked `gpu` did not pass")


def training(findings: Findings) -> None:
    """The naive loop and the one with all levers, by turns; the optimizer's step by itself."""
    with tempfile.TemporaryDirectory() as folder:
        work = toy_workload(Path(folder)) if findings.smoke else sd15_workload(Path(folder))
        variants = work.variants()
        if findings.smoke:  # a compiler takes minutes
            variants[ALL] = replace(variants[ALL], compiled=False)
        peak, origin = gpu_peak(findings.device)
        findings.note(
            head={"workload": work.name, "device": str(work.device), "peak_flops": peak, "peak_origin": origin}
        )
        speeds: dict[str, float] = {}
        for name in (NAIVE, ALL):

            def measure(name: str = name) -> dict[str, Any]:
                started = time.perf_counter()
                loop = Loop(work, variants[name])
                loop.turn(1)
                first = time.perf_counter() - started
                turns = [loop.turn(3) for _ in range(2 if findings.smoke else 4)]
                if name == ALL:
                    findings.note(notes={"optimizer step in ms": optimizer_milliseconds(loop, work.device)})
                loop.close()
                speeds[name] = statistics.median(turns)
                return {
                    "batch": loop.batch_size,
                    "images_per_second": speeds[name],
                    "ratio": speeds[name] / speeds[NAIVE] if NAIVE in speeds else None,
                    "mfu": speeds[name] * work.flops(variants[name]) / peak,
                    "first_step_seconds": first,  # compiling, where there is any
                }

            findings.row(measure, loop=name)


def known_device(name: str) -> str | None:
    """Key of `DEVICES` for a name that CUDA gives, such as "NVIDIA H100 80GB HBM3"; None where none is sure."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    if any(other in letters for other in NAMESAKES):
        return None
    found = [key for key in DEVICES if all(part in letters for part in key.split("-"))]
    return max(found, key=len, default=None)


def gpu_peak(device: torch.device) -> tuple[float, str]:
    """FLOP/s that shares of the peak refer to, and where the number is from."""
    key = known_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if key is not None:
        return DEVICES[key].bfloat16 * 1e12, f"published for {key}"
    return measured_peak(device, 8192 if device.type == "cuda" else 128), "measured, matrix product"


def optimizer_milliseconds(loop: Loop, device: torch.device) -> dict[str, float]:
    """A step of AdamW over the trained weights, fused and as torch has it by default."""
    weights = [weight.detach().clone().requires_grad_() for _, weight in loop.stage.trained_parameters()]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizers = {"fused": torch.optim.AdamW(weights, fused=True), "default": torch.optim.AdamW(weights)}
    return {name: 1000 * median_seconds(one.step, device, 10) for name, one in optimizers.items()}


@torch.no_grad()
def sampling(findings: Findings) -> None:
    """Every method at SDXL's shapes: some network calls of each kind are timed, all are counted."""
    with findings.device:
        network: Any = unet(**(TOY_SDXL_UNET if findings.smoke else SDXL_UNET))
    network.to(findings.dtype)
    for scale in SCALES:
        for place, name in enumerate(METHODS):
            published = PUBLISHED.get(name)

            def measure(name: str = name, scale: int = scale, published: Any = published) -> dict[str, Any]:
                row = sampling_row(network, METHODS[name](), scale, 10 if findings.smoke else STEPS)
                count = None if published is None else published[SCALES.index(scale)]
                factor = None if count is None else count / row["evaluations"]
                return row | {
                    "published_evaluations": count,
                    "published_seconds": None if factor is None else factor * row["seconds"],
                }

            findings.row(measure, method=name, pixels=1024 * scale)
            print(f"  {scale} x {name} ({place + 1} of {len(METHODS)})", file=sys.stderr, flush=True)


def sampling_row(network: Any, method: Any, scale: int, steps: int) -> dict[str, Any]:
    """Evaluations, and seconds of the whole run by the calls that were timed.

    Args:
        network: A UNet of SDXL's kind.
        method: As `sample` takes it.
        scale: Times the native side.
        steps: Of the scheduler.
    """
    device, dtype, side = network.device, network.dtype, network.config.sample_size
    pooled = torch.zeros(1, pooled_width(network) or 0, device=device, dtype=dtype)
    added = added_conditions(pooled, (1024, 1024, 0, 0, 1024, 1024))
    context = torch.randn(1, 148, network.config.cross_attention_dim, device=device, dtype=dtype)
    timed = TimedNetwork(network, calls=2)
    synchronise(device)
    started = time.perf_counter()
    sample(
        timed,
        stable_diffusion_scheduler(),
        latent_shape=(1, 4, scale * side, scale * side),
        native_size=(side, side),
        context=context,
        negative_context=torch.zeros_like(context),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
        method=method,
        added_conditions=lambda view, branch, size: added,
        unet=network,
        view_batch_size=4,
    )
    synchronise(device)
    outside = time.perf_counter() - started - timed.spent
    return {"evaluations": timed.evaluations(side), "seconds": timed.seconds + outside}


@torch.no_grad()
def encoder(findings: Findings) -> None:
    """The encoder's forward pass over pictures of 512 x 512 pixels."""
    with findings.device:
        model: Any = SeeCoder(**(TOY_ENCODER if findings.smoke else {})).eval()
    model.to(findings.dtype)
    side = 64 if findings.smoke else 512
    for batch in (1, 32):
        pixels = torch.rand(batch, 3, side, side, device=findings.device, dtype=findings.dtype)

        def measure(pixels: torch.Tensor = pixels, batch: int = batch) -> dict[str, Any]:
            seconds = median_seconds(lambda: model(pixels), findings.device, 3 if findings.smoke else 10)
            return {"milliseconds": 1000 * seconds, "images_per_second": batch / seconds}

        findings.row(measure, batch=batch)


@torch.no_grad()
def decoder(findings: Findings) -> None:
    """One picture of 4096 x 4096 pixels (64 x 64 at toy size) through SDXL's autoencoder, in tiles."""
    with findings.device:
        if findings.smoke:
            vae = autoencoder((8, 8), norm_num_groups=4)
        else:
            vae = autoencoder(SDXL_VAE_CHANNELS, layers_per_block=2, scaling_factor=0.13025)
    vae.to(findings.dtype)
    cells = 32 if findings.smoke else 512
    latents = torch.randn(1, 4, cells, cells, device=findings.device, dtype=findings.dtype)

    def measure() -> dict[str, Any]:
        synchronise(findings.device)
        started = time.perf_counter()
        pixels, notes = decode_latents(vae, latents)
        synchronise(findings.device)
        return {"pixels": pixels.shape[-1], "seconds": time.perf_counter() - started, "notes": "; ".join(notes)}

    findings.row(measure)


PARTS = {"tests": gpu_tests, "training": training, "sampling": sampling, "encoder": encoder, "decoder": decoder}


if __name__ == "__main__":
    PARTS[sys.argv[1]](Findings(Path(sys.argv[2]), smoke=False))

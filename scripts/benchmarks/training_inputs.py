"""What the training benchmark trains and reads: the world, and Stable Diffusion 1.5's shapes with random weights."""

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from data.build import main as build
from data.cache import main as cache
from data.shards.building.shard_build import write_shard
from data.shards.building.sources import encode_image
from data.shards.manifest import Manifest, write_manifest
from scripts.benchmarks.random_networks import autoencoder, small_unet, stable_diffusion_scheduler
from scripts.benchmarks.training_levers import Workload
from seecoder.base_model.known_bases import base_sizes

ROOT = Path(__file__).resolve().parents[2]
QUALITY, SIDE = 90, 512
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
WORLD: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "world_seecoder.yaml").read_text())
TOY_ENCODER: dict[str, Any] = WORLD["stage"]["init_args"]["encoder"]


def _quietly(command: Callable[[list[str]], int], *arguments: str) -> None:
    """Run a command of ours without its progress.

    Raises:
        RuntimeError: It failed.
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        code = command(list(arguments))
    if code:
        raise RuntimeError(f"{' '.join(arguments)} failed: {said.getvalue().strip().splitlines()[-1]}")


def world_workload(folder: Path, base: Path | None = None) -> Workload:
    """The world's training as `configs/world_seecoder.yaml` has it, on fresh shards.

    Args:
        folder: Where shards are written.
        base: The world's base; None takes the one of the configuration.
    """
    stage, data = WORLD["stage"]["init_args"], WORLD["data"]["init_args"]
    where = Path(ROOT, stage["base"]) if base is None else base
    size, batch = data["image_size"], data["batch_size"]
    raw, cached = folder / "world", folder / "world-cached"
    count = str(4 * batch)
    _quietly(build, "world", str(raw), "--count", count, "--size", str(size), "--samples-per-shard", str(batch // 2))
    _quietly(cache, str(raw), str(cached), "--base", str(where), "--size", str(size), "--device", "cpu")
    return Workload(
        f"The world, {size} x {size}, on the CPU ({torch.get_num_threads()} threads)",
        *(where, stage["encoder"], size, (batch // 2, batch), raw, cached, torch.device("cpu")),
        workers=1,
    )


def sd15_workload(folder: Path) -> Workload:
    """Stable Diffusion 1.5's shapes with random weights and Swin-L, on a GPU; the base and shards go into `folder`."""
    sizes = base_sizes(SD15)
    assert sizes is not None  # it is in the table of released bases
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel.from_config(dict(sizes.unet)), AutoencoderKL.from_config(dict(sizes.vae))
    name = f"Stable Diffusion 1.5's shapes, released decoder, 512 x 512, {torch.cuda.get_device_name()}"
    return _random_workload(
        folder, name, unet, vae, {"decoder_attention": "released"}, SIDE, (8, 32), torch.device("cuda")
    )


def toy_workload(folder: Path) -> Workload:
    """The same at toy size, on the CPU."""
    torch.manual_seed(0)
    unet, vae = small_unet((8, 16), side=16, groups=4), autoencoder((8, 8), norm_num_groups=4)
    return _random_workload(folder, "toy sizes", unet, vae, TOY_ENCODER, 32, (2, 4), torch.device("cpu"))


def _random_workload(
    folder: Path,
    name: str,
    unet: Any,
    vae: Any,
    encoder: Mapping[str, Any],
    side: int,
    batches: tuple[int, int],
    device: torch.device,
) -> Workload:
    """Write a base, shards of JPEG, and the same with cached latents."""
    base, raw, cached = folder / "base", folder / "jpeg", folder / "jpeg-cached"
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet.to(dtype).save_pretrained(base / "unet")
    vae.to(dtype).save_pretrained(base / "vae")
    stable_diffusion_scheduler().save_pretrained(base / "scheduler")
    write_pictures(raw, shards=8, count=max(batches))
    options = ("--size", str(side), "--device", device.type, "--batch-size", "16")
    _quietly(cache, str(raw), str(cached), "--base", str(base), *options)
    workers = 8 if device.type == "cuda" else 0
    return Workload(name, base, encoder, side, batches, raw, cached, device, workers=workers)


def write_pictures(folder: Path, shards: int, count: int) -> None:
    """Write shards of JPEG whose bytes are about those of photographs: smooth shapes, edges and grain."""
    folder.mkdir()
    rows = []
    for shard in range(shards):
        samples = ((f"{number:06d}", {"jpg": _jpeg(shard * count + number)}) for number in range(count))
        rows.append(write_shard(folder / f"{shard:05d}.tar", samples))
    write_manifest(folder, Manifest(tuple(rows), ("jpg",)))


def _jpeg(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    for cells in (4, 16, 64, 256):  # every octave with the same power, as in photographs
        part = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 4
    picture += random.normal(0, 4, picture.shape)
    return encode_image(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "JPEG", quality=QUALITY)

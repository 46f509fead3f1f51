"""The demo's steps, each a command that a user could type; `scripts/demo` prepares the environment and calls this."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seecoder.threads import wait_passively

HELD_OUT_SEED = 9_000_000  # training shards are drawn from another stream
SHARD_SEED = 100
CONFIG = "configs/world_seecoder.yaml"
ABOUT_PHOTOS = (
    "The world is one object of six shapes and eight hues before a sky and a ground, and nothing else: of a photograph "
    "its variations keep main colours at most. Photographs want a Stable Diffusion base and an encoder for it."
)


def run(title: str, *command: str | Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print a command, run it with these additions to the environment, and end the demo if it fails."""
    words = [str(word) for word in command]
    print(f"\n== {title}\n$ {shlex.join(words)}", flush=True)
    start = time.monotonic()
    executable = {"python": sys.executable, "seecoder": str(Path(sys.executable).parent / "seecoder")}.get(words[0])
    code = subprocess.run([executable or words[0], *words[1:]], cwd=ROOT, env={**os.environ, **environment}).returncode
    if code:
        raise SystemExit(f"The step «{title}» failed with exit code {code}.")
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def processes() -> tuple[tuple[str, ...], dict[str, str]]:
    """Two processes that share the cores and every batch: options of the training, and its environment.

    Without the environment they are no faster than one process: the backward pass has threads of its own, which
    OpenMP would let use all cores, and glibc would give back and fetch again the memory of every step.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return (), {}
    threads = str(cores // 2)
    batch = yaml.safe_load((ROOT / CONFIG).read_text())["data"]["init_args"]["batch_size"]
    options = ("--run.devices", "2", "--run.threads", threads, "--data.init_args.batch_size", str(batch // 2))
    keep_memory = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    return options, {"OMP_NUM_THREADS": threads} | keep_memory


def precision() -> str:
    """The faster one on this CPU: bfloat16 without instructions for it takes ten times as long as float32."""
    from train.run.cpu_attention import is_slow_in_bfloat16
    from train.settings import RunSettings

    settings = yaml.safe_load((ROOT / CONFIG).read_text())["run"]
    return "32-true" if is_slow_in_bfloat16(RunSettings(**settings)) else settings["precision"]


def draw_inputs(folder: Path) -> list[Path]:
    """Write held-out scenes as PNG, and one large, turned, grainy JPEG, as a camera would."""
    import torch
    from PIL import Image

    from data.world.render import render
    from data.world.scenes import sample_scenes
    from seecoder.images.saving import save_image, to_pil

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, pixels in enumerate(render(sample_scenes(4, HELD_OUT_SEED), 64)):
        paths.append(folder / f"scene-{index}.png")
        save_image(pixels, paths[-1])
    wide = render(sample_scenes(1, HELD_OUT_SEED + 50), 480, 720)[0]
    noisy = (wide + 0.03 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    turned = to_pil(noisy).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side, as phones do
    turned.save(folder / "photograph.jpg", quality=85, exif=exif)
    return paths


def write_sheet(path: Path, inputs: list[Path], folders: dict[int, Path]) -> None:
    """One row an input: the input, then its first variation at every size."""
    from seecoder.images.gate import load_image
    from seecoder.images.saving import save_image, to_pil
    from seecoder.images.sheet import contact_sheet

    columns = [inputs] + [sorted(folder.glob("*.png")) for folder in folders.values()]
    rows = [[to_pil(load_image(picture)) for picture in row] for row in zip(*columns, strict=True)]
    labels = [["input", *(f"variation at {side}" for side in folders)] for _ in rows]
    save_image(contact_sheet(rows, labels), path)


def check_photo(parser: argparse.ArgumentParser, photo: Path | None) -> None:
    """Refuse a photograph that cannot be read now, and not after the training."""
    from seecoder.images.gate import ImageError, load_image

    try:
        if photo is not None:
            load_image(photo)
    except ImageError as error:
        parser.exit(2, f"`--photo`: {error}\n")


def main() -> None:
    """Run every step and say where the results are."""
    wait_passively()
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--photo", type=Path, help=f"a picture of your own to vary as well. {ABOUT_PHOTOS}")
    parser.add_argument("--count", type=int, default=64, help="held-out scenes of the table (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=8192, help="training scenes (default: %(default)s)")
    options = parser.parse_args()
    check_photo(parser, options.photo)
    out: Path = options.out.resolve()
    base = ROOT / "data" / "world" / "base"
    start = time.monotonic()
    shards, training, encoder, inputs = out / "shards", out / "training", out / "encoder", out / "inputs"
    run(
        "Write training shards of the world",
        *("python", "-m", "data.build", "world", shards, "--count", str(options.scenes), "--seed", str(SHARD_SEED)),
        *("--samples-per-shard", "2048", "--workers", "2"),
    )
    shared_out, environment = processes()
    run(
        "Train the encoder: the backbone, the autoencoder and the UNet stay frozen",
        *("python", "-m", "train", "fit", "--config", CONFIG),
        *("--run.folder", training, "--run.max_steps", str(options.steps), "--data.init_args.shards", shards),
        *("--run.evaluate_every", "300", "--run.checkpoint_every", "600"),
        *("--run.precision", precision()),
        *shared_out,
        environment=environment,
    )
    run("Export the encoder", "seecoder", "export", training, encoder, "--overwrite")
    pictures = draw_inputs(inputs)
    vary = ("seecoder", "vary", "--base", base, "--encoder", encoder, "--guidance", "4", "--overwrite")
    seen = ("--image-size", "64")  # what the encoder is trained at
    folders = {side: out / f"variations-{side}" for side in (64, 128, 256)}  # the larger ones by the preset `auto`
    for side, folder in folders.items():
        run(
            f"Vary held-out scenes at {side // 64}x the training size",
            *(*vary, *pictures, "--height", str(side), "--width", str(side)),
            *("--sheet", "", "--out", folder),
        )
    write_sheet(out / "sheet.png", pictures, folders)
    if options.photo:
        print(f"\n{ABOUT_PHOTOS}")
    photographs = [inputs / "photograph.jpg", *([options.photo.resolve()] if options.photo else [])]
    run("Vary a photograph", *vary, *seen, *photographs, "--count", "3", "--out", out / "photograph")
    run(
        "Count what the variations keep",
        *("python", "scripts/evaluation/evaluate_encoder.py", "--base", base, "--encoder", encoder),
        *("--count", str(options.count), "--seed", str(HELD_OUT_SEED), "--steps", "25", "--out", out),
    )
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Look into {out}:")
    print("sheet.png, table.md, and the pictures in photograph/.")


if __name__ == "__main__":
    main()

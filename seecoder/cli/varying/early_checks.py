"""What is wrong with the options of a command, told before anything heavy is imported."""

import argparse
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from seecoder.call_rules import check_arguments, check_size
from seecoder.checks import number, require, some_of, whole
from seecoder.cli.conditions.adapters import control_pictures
from seecoder.cli.console import check_new
from seecoder.cli.options import pipeline_arguments
from seecoder.cli.varying.jobs import seeds_of

SETTINGS_NAME = "settings.json"
_NATIVE, _CELL = 512, 8  # pixels a side and a latent cell, where the base does not tell


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse numbers, names and paths of `seecoder vary` and `seecoder panorama` that no networks could make right.

    Raises:
        ValueError: A value that is not accepted, or options that contradict each other.
        OSError: A picture that is not there, or a result that cannot be written.
    """
    check_arguments(pipeline_arguments(arguments))
    check_networks(arguments)
    seeds_of(arguments.seed, arguments.count)
    for name in ("height", "width", "batch", "max_pixels"):
        if getattr(arguments, name) is not None:
            require(f"--{name.replace('_', '-')}", getattr(arguments, name), whole(1))
    *native, cell = base_pixels(arguments.base)
    check_size(arguments.height or native[0], arguments.width or native[1], cell)
    pictures = arguments.pictures
    for name in ("weights", "concatenate"):
        if getattr(arguments, name) and not arguments.together:
            raise ValueError(f"`--{name}` has no effect without `--together`.")
    if arguments.weights and not any(Path(path).is_dir() for path in pictures):
        count = len(pictures)
        rule = some_of(
            number(0.0), f"one number from 0 up for each of the {count} pictures", minimum=count, maximum=count
        )
        require("--weights", arguments.weights, rule)
    if not pictures and not arguments.encoder.endswith(".safetensors"):
        raise ValueError("give at least one PICTURE, or contexts with `--encoder`.")
    check_pictures(input_files(arguments))
    out = Path(arguments.out)
    sheet = sheet_path(arguments.sheet, out)
    check_new([out / SETTINGS_NAME, *filter(None, [sheet])], arguments.overwrite, input_files(arguments))


def check_networks(arguments: argparse.Namespace) -> None:
    """Refuse devices and schedulers that do not exist.

    Raises:
        ValueError: There is none of that name.
    """
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu|hpu|npu)(:\d+)?", arguments.device):
        raise ValueError(f"`--device`={arguments.device!r} is not a device; use auto, cpu, cuda, cuda:1 or mps.")
    name, spec = getattr(arguments, "scheduler", None), find_spec("diffusers")
    if name and spec is not None and spec.origin is not None:
        names = set(re.findall(r'"(\w+)Scheduler"', Path(spec.origin).read_text(encoding="utf-8")))
        if name.removesuffix("Scheduler") not in names:
            near = get_close_matches(name, sorted(names), 3) or ["DDIM", "EulerDiscrete"]
            raise ValueError(
                f"`--scheduler`={name!r} is not a scheduler of diffusers; use one such as {', '.join(near)}."
            )


def check_pictures(paths: Sequence[str]) -> None:
    """Refuse pictures that are not there.

    Raises:
        FileNotFoundError: With the first of them.
    """
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f"`{path}` does not exist; give the path of a picture.")


def input_files(arguments: argparse.Namespace) -> list[str]:
    """All pictures that a command reads."""
    parts = [path for pair in arguments.region for path in pair]
    single = filter(None, [arguments.start_image, arguments.mask, arguments.ip_adapter_image])
    beside = [*arguments.negative, *arguments.reference_mask, *parts]
    return [*arguments.pictures, *beside, *control_pictures(arguments), *single]


def sheet_path(sheet: str, out: Path) -> Path | None:
    """Say where the contact sheet goes.

    Args:
        sheet: What --sheet gave: a plain name lies in `out`, a path is taken as it is, "" is no sheet.
        out: What --out gave.

    Raises:
        ValueError: No ending of a picture.
    """
    if not sheet:
        return None
    if Path(sheet).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"`--sheet`={sheet!r} must end in .png, .jpg or .webp.")
    return out / sheet if Path(sheet).name == sheet else Path(sheet)


def base_pixels(base: str | None) -> tuple[int, int, int]:
    """Height and width that a base in a folder was trained at and a latent cell, in pixels; of others what is usual."""
    try:
        side = json.loads((Path(base or "") / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"]
        vae = json.loads((Path(base or "") / "vae" / "config.json").read_text(encoding="utf-8"))
        cell = 2 ** (len(vae["block_out_channels"]) - 1)
        height, width = (side, side) if isinstance(side, int) else side
    except (OSError, ValueError, KeyError, TypeError):
        return _NATIVE, _NATIVE, 1 if base else _CELL
    return height * cell, width * cell, cell

"""What is wrong with the options of a command, told before anything heavy is imported."""

import argparse
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from seecoder.base_model.facts import native_size, pixels_per_cell
from seecoder.call_rules import check_arguments, check_size
from seecoder.checks import number, require, some_of, whole
from seecoder.cli.conditions.adapters import check_adapters, check_guides
from seecoder.cli.console import check_new
from seecoder.cli.opening import pictures_by_use
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
    check_guides(arguments)
    check_adapters(arguments)
    seeds_of(arguments.seed, arguments.count)
    for name in ("height", "width", "batch", "max_pixels"):
        if getattr(arguments, name) is not None:
            require(f"--{name.replace('_', '-')}", getattr(arguments, name), whole(1))
    height, width, cell = base_pixels(arguments.base)
    check_size(arguments.height or height, arguments.width or width, cell)
    if arguments.region and "multidiffusion" not in (arguments.method or "").lower():
        raise ValueError("`--region` needs `--method multidiffusion` (alone, or where it composes with others).")
    pictures = arguments.pictures
    for name in ("weights", "concatenate"):
        if getattr(arguments, name) and not arguments.together:
            raise ValueError(f"`--{name}` has no effect without `--together`.")
    if arguments.guidance is not None and arguments.guidance <= 1:
        for name in ("negative", "negative_text"):
            if getattr(arguments, name):
                raise ValueError(f"`--{name.replace('_', '-')}` has no effect with `--guidance` 1 or less; use more.")
    if arguments.concatenate and arguments.weights:
        raise ValueError("`--weights` have no effect with `--concatenate`; leave one of them out.")
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
            kind = re.split(r"[\W_]", name.lower())[0]  # "euler a" and "dpm++ 2m" are other programs' names
            near = [one for one in sorted(names) if one.lower().startswith(kind)] or get_close_matches(name, names, 3)
            near = ", ".join(near[:3] or ["DDIM", "EulerDiscrete"])
            raise ValueError(f"`--scheduler`={name!r} is not a scheduler of diffusers; use one such as {near}.")


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
    return [path for paths in pictures_by_use(arguments).values() for path in paths]


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
    unet, vae = (Path(base or "", part, "config.json") for part in ("unet", "vae"))
    if not (unet.is_file() and vae.is_file()):
        return _NATIVE, _NATIVE, 1 if base else _CELL
    try:
        cell = pixels_per_cell(json.loads(vae.read_text(encoding="utf-8")))
        sides = native_size(json.loads(unet.read_text(encoding="utf-8")), (_NATIVE // cell, _NATIVE // cell))
    except ValueError:  # no JSON, which what loads the base says better
        return _NATIVE, _NATIVE, 1
    return sides[0] * cell, sides[1] * cell, cell

"""Options that several commands share, and how their texts become values."""

import argparse
import ast
import math
from typing import Any

__all__ = [
    "add_autoencoder_memory",
    "add_base_options",
    "add_image_size",
    "add_sampling_options",
    "image_size",
    "key_value",
    "positive_int",
    "seed",
    "share",
    "weight",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}
_SEED_LIMIT = 2**63
_SMALLEST_SIDE = 32


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def positive_int(text: str) -> int:
    """Read a whole number from 1 up."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def seed(text: str) -> int:
    """Read a seed, 0 to 2^63 - 1."""
    value = _integer(text)
    if not 0 <= value < _SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{text} is not a seed; use 0 to 2^63 - 1")
    return value


def weight(text: str) -> float:
    """Read a finite number from 0 up."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a weight; use a number from 0 up")
    return value


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def positive(text: str) -> float:
    """Read a number above 0; "inf" is one."""
    value = _number(text)
    if not value > 0.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def finite(text: str) -> float:
    """Read a finite number."""
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def image_size(text: str) -> int | None:
    """Read the side of a square in pixels, or "own" for None."""
    if text == "own":
        return None
    value = int(text)
    if value < _SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is too small; use {_SMALLEST_SIDE} pixels or more, or own")
    return value


def add_image_size(parser: argparse._ActionsContainer) -> None:
    """Add what says at which size the encoder sees pictures."""
    parser.add_argument(
        "--image-size",
        type=image_size,
        default=512,
        metavar="PIXELS",
        help="larger pictures are reduced to the area of such a square before they are encoded; best is what the "
        "encoder was trained at; own: never (default: %(default)s)",
    )


def add_autoencoder_memory(parser: Any) -> None:
    """Add what says how much memory the autoencoder may take, to a parser or a group of one."""
    parser.add_argument(
        "--autoencoder-memory",
        type=positive,
        default=6.0,
        metavar="GIB",
        help="what the autoencoder may take; what takes more is decoded and encoded in tiles (inf: as a whole)",
    )


def key_value(text: str) -> tuple[str, Any]:
    """Read `key=value`; the value is a Python literal where it looks like one (8, 0.5, (4, 4)), else text.

    True, yes, false, no and none are read in any case: as text each of them would be true.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.replace(".", "").replace("-", "_").isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    key, word = key.replace("-", "_"), value.strip().lower()
    if word in _WORDS:
        return key, _WORDS[word]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which networks to use, and where and how to hold them."""
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--base", required=True, metavar="FOLDER", help="diffusers folder or Hub repository of the base model"
    )
    group.add_argument(
        "--encoder",
        required=True,
        metavar="FOLDER_OR_FILE",
        help="an exported encoder (folder or Hub repository), a released .safetensors file, or contexts from "
        "`seecoder encode`",
    )
    group.add_argument("--vae", metavar="FOLDER", help="another VAE than the base's")
    group.add_argument("--controlnet", metavar="FOLDER", help="a ControlNet; needs --control-image")
    group.add_argument("--control-image", metavar="PICTURE", help="what the ControlNet sees")
    group.add_argument("--control-scale", type=finite, default=1.0, help="factor on the ControlNet's residuals")
    group.add_argument("--variant", help="variant of the base's weight files, such as fp16")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one"
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: float16 on an accelerator, float32 on the CPU"
    )


def add_sampling_options(parser: argparse.ArgumentParser, *, method: str | None) -> None:
    """Add what says how to sample.

    Args:
        parser: the command's.
        method: default of --method.
    """
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--height", type=positive_int, help="pixels, a multiple of 8; default: what the base was trained at"
    )
    group.add_argument("--width", type=positive_int, help="the same")
    group.add_argument("--steps", type=positive_int, default=50, help="denoising steps")
    group.add_argument("--guidance", type=finite, default=2.0, help="guidance scale; 1 switches guidance off")
    group.add_argument(
        "--guidance-rescale", type=share, default=0.0, help="share of the rescaled prediction, against over-exposure"
    )
    group.add_argument("--eta", type=share, default=0.0, help="DDIM's stochasticity")
    group.add_argument(
        "--scheduler", metavar="NAME", help="another scheduler of diffusers, such as DDIM or EulerDiscrete"
    )
    group.add_argument(
        "--context-scale", type=finite, default=1.0, help="strength of the context; 0 ignores the picture"
    )
    group.add_argument(
        "--method",
        default=method,
        metavar="NAME[,NAME]",
        help="how to sample above the base's size: see `seecoder vary --help`",
    )
    group.add_argument(
        "--method-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, or NAME.KEY=VALUE where methods share a name: a number, a word, true or false, "
        "none, (4, 8); may be repeated",
    )
    group.add_argument("--view-batch", type=positive_int, default=16, help="windows that go through the UNet at once")
    add_autoencoder_memory(group)

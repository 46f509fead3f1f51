"""Make panoramas of pictures: wide results through overlapping windows, each as large as the base's training pictures.

syncdiffusion (the default) keeps the windows alike in look by their perceptual distance; multidiffusion only blends
them; syncdiffusion,multidiffusion keeps windows alike that may have regions, jitter or feather. With --wrap the right
border continues at the left one. The result is four times as wide as high unless --width and --height say otherwise.

  seecoder panorama hills.jpg --base sd-1.5 --encoder my-encoder --out wide --wrap
"""

import argparse
from typing import TYPE_CHECKING

from seecoder.cli import vary
from seecoder.cli.varying.early_checks import check_options
from seecoder.cli.varying.method_list import check_methods

if TYPE_CHECKING:
    from seecoder.sampling.recipe import Method

HELP = "make panoramas of pictures"
METHODS = ("syncdiffusion", "multidiffusion")  # or both
_ASPECT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments: those of `vary`, and --wrap."""
    vary.add_arguments(parser)
    parser.set_defaults(method=METHODS[0])
    parser.add_argument("--wrap", action="store_true", help="close the loop: a 360 degree panorama")


def run(arguments: argparse.Namespace) -> None:
    """Make the panoramas."""
    check_options(arguments)
    vary.make(arguments, panorama_methods(arguments), aspect=_ASPECT)


def panorama_methods(arguments: argparse.Namespace) -> "list[Method]":
    """Make the method of a panorama, closed to a loop if asked for.

    Args:
        arguments: The parsed options.

    Raises:
        ValueError: Another method.
    """
    names = [name.strip().lower() for name in (arguments.method or "").split(",")]
    if not set(names) <= set(METHODS):
        raise ValueError(
            f"`--method`={arguments.method!r} makes no panoramas; use {', '.join(METHODS)} or {','.join(METHODS)}."
        )
    check_methods(",".join(names), arguments.method_option)
    from seecoder.sampling.methods.registry import build_methods

    closed = [("closed_loop", True)] if arguments.wrap else []
    return build_methods(",".join(names), [*arguments.method_option, *closed]) or []

"""Parts of a result that follow pictures of their own: `--region MASK=PICTURE`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

__all__ = ["add_regions", "with_regions"]


def mask_and_picture(text: str) -> tuple[str, str]:
    """Read `MASK=PICTURE`."""
    mask, _, picture = text.partition("=")
    if not mask or not picture:
        raise argparse.ArgumentTypeError(f"{text!r} is not MASK=PICTURE")
    return mask, picture


def add_regions(parser: argparse._ActionsContainer) -> None:
    """Add the option."""
    parser.add_argument(
        "--region",
        type=mask_and_picture,
        action="append",
        default=[],
        metavar="MASK=PICTURE",
        help="where MASK (a picture of any size, stretched over the result) is white, follow PICTURE; may be repeated; "
        "needs --method multidiffusion",
    )


def with_regions(methods: Sequence[Any] | None, arguments: argparse.Namespace, pipe: Any) -> list[Any] | None:
    """Give the regions of `--region` to the method that can have them.

    Args:
        methods: how to sample.
        arguments: the parsed options.
        pipe: the pipeline, whose encoder encodes the regions' pictures.

    Raises:
        ImageError: a picture that cannot be read.
        ValueError: no such method, a mask without any white, or a pipeline without an encoder.
    """
    from seecoder.sampling import MultiDiffusion

    if not arguments.region:
        return None if methods is None else list(methods)
    if not any(isinstance(method, MultiDiffusion) for method in methods or ()):
        raise ValueError("`--region` needs `--method multidiffusion` (alone, or where it composes with others).")
    regions = [_region(pipe, arguments, mask, picture) for mask, picture in arguments.region]
    return [
        replace(method, regions=regions) if isinstance(method, MultiDiffusion) else method for method in methods or ()
    ]


def _region(pipe: Any, arguments: argparse.Namespace, mask: str, picture: str) -> Any:
    from seecoder.images.loading import load_image
    from seecoder.sampling import Region

    share = load_image(mask).mean(dim=0)
    if float(share.max()) == 0.0:
        raise ValueError(f"`--region`: {mask} is black everywhere; the region of {picture} must be white.")
    encoded = pipe.encode_context(picture, image_size=arguments.image_size)
    vectors = encoded if isinstance(encoded, tuple) else (encoded,)  # of SDXL, the pooled one, too
    return Region(share, *(values.to(pipe.unet.dtype) * arguments.context_scale for values in vectors))

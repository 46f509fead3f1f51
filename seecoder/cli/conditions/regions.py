"""Pictures that say where: regions that follow pictures of their own, and the start picture with its mask."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seecoder.cli.opening import OpenedPictures
    from seecoder.pipelines.base import ContextPipeline
    from seecoder.sampling.recipe import Method


def mask_and_picture(text: str) -> tuple[str, str]:
    """Read `MASK=PICTURE`."""
    mask, _, picture = text.partition("=")
    if not mask or not picture:
        raise argparse.ArgumentTypeError(f"{text!r} is not MASK=PICTURE")
    return mask, picture


def add_regions(parser: argparse._ActionsContainer) -> None:
    """Add what says which picture is redrawn, how much and where, and what follows pictures of its own."""
    parser.add_argument(
        "--start-image",
        metavar="PICTURE",
        help="redraw this picture instead of starting from noise; demofusion without --strength and --mask enlarges it",
    )
    parser.add_argument(
        "--strength",
        type=float,
        help="how much of --start-image is redrawn: above 0 (nothing) to 1 (all); default: 0.8, with a mask 1",
    )
    parser.add_argument(
        "--mask",
        metavar="MASK",
        help="redraw --start-image where this is white (or painted, on a transparent ground), keep the rest pixel by "
        "pixel; inpainting bases need it",
    )
    parser.add_argument(
        "--mask-feather", type=int, default=0, metavar="PIXELS", help="width of the fade around the mask; 0: hard edge"
    )
    parser.add_argument(
        "--region",
        type=mask_and_picture,
        action="append",
        default=[],
        metavar="MASK=PICTURE",
        help="where MASK (a picture of any size, stretched over the result) is white, or painted on transparency, "
        "follow PICTURE; may be repeated; needs --method multidiffusion",
    )


def with_regions(
    methods: "list[Method] | None",
    arguments: argparse.Namespace,
    pipe: "ContextPipeline",
    opened: "OpenedPictures",
) -> "list[Method] | None":
    """Give the regions of `--region` to the method that can have them.

    Args:
        methods: How to sample.
        arguments: The parsed options.
        pipe: The pipeline, whose encoder encodes the regions' pictures.
        opened: The decoded masks and pictures.

    Raises:
        ValueError: A pipeline without an encoder.
    """
    from seecoder.sampling.methods.multidiffusion import MultiDiffusion, Region

    if not arguments.region:
        return methods
    regions = []
    for mask, picture in arguments.region:
        scale = arguments.context_scale
        factor = scale if isinstance(scale, float) else 1.0  # scales by blocks are the layers' matter
        # The context, and for SDXL the pooled vector.
        vectors = pipe.context_arguments(opened.encoded[picture], image_size=None).values()
        regions.append(Region(opened.masks[mask], *(values.to(pipe.unet.dtype) * factor for values in vectors)))
    return [
        replace(method, regions=regions) if isinstance(method, MultiDiffusion) else method for method in methods or ()
    ]

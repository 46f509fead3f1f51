"""Options of what lies beside the pictures: text, pictures to lead away from, masks, and strength by blocks."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from seecoder.cli.opening import OpenedPictures
    from seecoder.pipelines.base import ContextPipeline


def scale_by_blocks(text: str) -> float | str | dict[str, float]:
    """Read a number, "style" or "layout", or numbers by block: `down.block_2=1,mid=0.5`."""
    try:
        if "=" in text:
            pairs = [pair.partition("=") for pair in text.split(",")]
            return {block.strip(): float(value) for block, _, value in pairs}
        return float(text)
    except ValueError:
        return text  # a word; the rules of a call know which there are


def add_context_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("beside the pictures")
    group.add_argument(
        "--context-scale",
        type=scale_by_blocks,
        default=1.0,
        metavar="SCALE",
        help="strength of the pictures: a number (0 ignores them); style or layout; or by blocks of the UNet, such as "
        "down.block_2=1,up=0.5, where blocks that are not named see no picture",
    )
    group.add_argument("--text", help="what to show besides; the base has to bring its text encoder")
    group.add_argument("--negative-text", metavar="TEXT", help="what not to show; goes with --text")
    group.add_argument(
        "--text-weight",
        type=float,
        metavar="WEIGHT",
        help="mix the tokens of pictures and text, 0 to 1 for the text's part; default: side by side",
    )
    group.add_argument("--negative", nargs="+", default=[], metavar="PICTURE", help="pictures to lead away from")
    group.add_argument(
        "--reference-mask",
        nargs="+",
        default=[],
        metavar="MASK",
        help="what counts of each PICTURE: white, or paint on transparency; one for all, or one each",
    )


def negative_arguments(
    arguments: argparse.Namespace, pipe: "ContextPipeline", opened: "OpenedPictures"
) -> "dict[str, torch.Tensor]":
    """Encode the pictures of `--negative` as arguments of the pipeline's call; none if there are none.

    Args:
        arguments: The parsed options.
        pipe: The pipeline with its encoder.
        opened: The decoded pictures.
    """
    if not arguments.negative:
        return {}
    pictures = [opened.encoded[path] for path in arguments.negative]
    vectors = pipe.context_arguments([pictures], image_size=None)
    return {f"negative_{name}": values for name, values in vectors.items()}


def reference_masks(arguments: argparse.Namespace, opened: "OpenedPictures") -> list[Any]:
    """Give each picture its mask of `--reference-mask`, or None.

    Args:
        arguments: The parsed options.
        opened: The decoded masks.

    Raises:
        ValueError: Neither one mask nor one for each picture.
    """
    masks, count = [opened.masks[path] for path in arguments.reference_mask], len(arguments.pictures)
    if len(masks) not in (0, 1, count):
        raise ValueError(
            f"`--reference-mask` names {len(masks)} masks for {count} pictures; give one for all, or one each."
        )
    return masks if len(masks) == count else (masks or [None]) * count

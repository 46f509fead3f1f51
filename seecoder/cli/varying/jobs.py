"""What is to be varied: contexts made of pictures, or ready ones, and the seeds of their variations."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seecoder.checks import require, whole
from seecoder.cli.conditions.context_options import reference_masks

if TYPE_CHECKING:
    from PIL import Image

    from seecoder.cli.opening import OpenedPictures

_SEEDS = 2**63


@dataclass(frozen=True, eq=False)
class Job:
    """One context to vary.

    Attributes:
        name: What its files are called.
        arguments: What stands for its pictures in the pipeline's call: `image`, or a ready `context`.
        sources: The paths of its pictures, or the place of the context in its file.
        thumbnails: Its pictures and their names, as the contact sheet shows them.
    """

    name: str
    arguments: dict[str, Any]
    sources: list[str]
    thumbnails: "list[tuple[Image.Image, str]]" = field(default_factory=list)


@dataclass(frozen=True)
class Variation:
    """One picture to make.

    Attributes:
        job: Its context.
        seed: Of its random stream.
        file: Where it is written.
    """

    job: Job
    seed: int
    file: Path


def seeds_of(first: list[int], count: int | None) -> list[int]:
    """Make one seed a variation.

    Args:
        first: What --seed gave.
        count: What --count gave, or None.

    Raises:
        ValueError: A seed or a count out of range, or several seeds and a count that contradicts them.
    """
    for number in (*first, first[0] + (count or 1) - 1):  # and the last that is counted up to
        require("--seed", number, whole(0, _SEEDS - 1))
    if count is None:
        return first
    require("--count", count, whole(1))
    if len(first) not in (1, count):
        raise ValueError(
            f"`--count`={count} contradicts the {len(first)} seeds of `--seed`. Give one seed, or leave the count out."
        )
    return first if len(first) == count else list(range(first[0], first[0] + count))


def make_jobs(arguments: argparse.Namespace, opened: "OpenedPictures") -> list[Job]:
    """Make what is to be varied: every picture, all pictures together, or every context of a file.

    Args:
        arguments: The parsed options.
        opened: The decoded pictures.

    Raises:
        ValueError: Options that contradict each other, or nothing to vary.
    """
    from seecoder.encoder.context import ImageSet, is_context_file, load_context, normalise_weights
    from seecoder.images.saving import safe_name

    pictures = arguments.pictures
    if is_context_file(arguments.encoder):
        needs_encoder = ("together", "reference_mask", "negative", "region")
        if pictures or any(getattr(arguments, name) for name in needs_encoder):
            raise ValueError(
                "`--encoder` names ready contexts; PICTURE, --together, --reference-mask, --negative and --region go "
                "only with an encoder."
            )
        contexts = load_context(arguments.encoder)
        vectors = {"context": contexts.context, "pooled_context": contexts.pooled}
        rows = [
            {name: values[row : row + 1] for name, values in vectors.items() if values is not None}
            for row in range(len(contexts.context))
        ]
        return [Job("context", given, [f"{arguments.encoder}[{row}]"], []) for row, given in enumerate(rows)]
    if not pictures:
        raise ValueError("give at least one PICTURE, or contexts with `--encoder`.")
    thumbnails = [(opened.thumbnails[path], Path(path).name) for path in pictures]
    encoded, masks = [opened.encoded[path] for path in pictures], reference_masks(arguments, opened)
    if arguments.together:
        normalise_weights(arguments.weights, len(pictures))
        combine = "concatenate" if arguments.concatenate else "average"
        together = ImageSet(encoded, arguments.weights, combine, masks)
        return [Job("together", {"image": together}, pictures, thumbnails)]
    return [
        Job(safe_name(Path(path).stem), {"image": ImageSet([pixels], masks=[mask])}, [path], [thumbnail])
        for path, pixels, mask, thumbnail in zip(pictures, encoded, masks, thumbnails, strict=True)
    ]

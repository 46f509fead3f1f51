"""Make variations of pictures.

Every PICTURE is encoded and varied once for every seed; with --together all of them make one context. Pictures, a
contact sheet and settings.json (all that is needed to do it again) are written to --out; names there are a number, the
input's name and the seed.

  seecoder vary cat.jpg --base sd-1.5 --encoder my-encoder --out cats --count 4
  seecoder vary cat.jpg dog.jpg --together --weights 2 1 --base sd-1.5 --encoder my-encoder --out both
  seecoder vary cat.jpg --base sd-1.5 --encoder my-encoder --out large --height 2048 --width 2048

A picture may be redrawn in the look of another, all of it or where a mask is white:

  seecoder vary cat.jpg --start-image room.jpg --strength 0.6 --base sd-1.5 --encoder my-encoder --out redrawn
  seecoder vary cat.jpg --start-image room.jpg --mask chair.png --base sd-1.5-inpainting --encoder my-encoder --out sat

Above the size that the base was trained at, --method says how to sample: a preset (auto, fast, balanced, best), methods
(several with commas where they compose; their settings with --method-option), or plain. The default is auto, which the
project's tables rank first; --method list shows all, with settings and costs. With multidiffusion parts of the result
may follow pictures of their own:

  seecoder vary room.jpg --region mask.png=cat.jpg --method multidiffusion --base sd-1.5 --encoder my-encoder --out in
"""

import argparse
import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from seecoder.base_model.facts import native_size
from seecoder.cli.conditions.context_options import add_context_options, negative_arguments
from seecoder.cli.conditions.regions import add_regions, with_regions
from seecoder.cli.console import check_new, check_space, say
from seecoder.cli.opening import THUMBNAIL_SIDE, files_of, load_pipeline, open_pictures
from seecoder.cli.options import (
    add_base_options,
    add_image_size,
    add_max_pixels,
    add_sampling_options,
    pipeline_arguments,
)
from seecoder.cli.varying.early_checks import SETTINGS_NAME, check_options, input_files, sheet_path
from seecoder.cli.varying.jobs import Job, Variation, make_jobs, seeds_of
from seecoder.cli.varying.method_list import check_methods
from seecoder.presets import PRESETS, count_windows, settled_preset

if TYPE_CHECKING:
    from PIL import Image

    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline
    from seecoder.sampling.recipe import Method

HELP = "make variations of pictures"
_COLUMNS = 8
_PIXEL_BYTES = 3  # of a PNG at most
Entry = TypeVar("Entry")  # of a contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="pictures to vary, or folders (but for results in them); none if --encoder names contexts",
    )
    add_base_options(parser)
    add_sampling_options(parser)
    add_context_options(parser)
    group = parser.add_argument_group("what to make")
    group.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    group.add_argument("--seed", type=int, nargs="+", default=[0], help="one seed a variation")
    group.add_argument("--count", type=int, help="variations a picture; seeds count up from a single --seed")
    group.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="pictures that go through the networks together; default: as many as help and as memory holds",
    )
    group.add_argument("--together", action="store_true", help="make one context of all pictures")
    add_image_size(group)
    add_max_pixels(group)
    group.add_argument("--weights", type=float, nargs="+", help="with --together: one number a picture")
    group.add_argument(
        "--concatenate", action="store_true", help="with --together: put the tokens side by side, do not average"
    )
    add_regions(group)
    group.add_argument(
        "--sheet", default="sheet.png", metavar="NAME", help="contact sheet: a name in --out, or a path; '' for none"
    )
    group.add_argument(
        "--previews", action="store_true", help="also write what each stage of a method with several has reached"
    )
    group.add_argument("--overwrite", action="store_true", help="write over existing files")


def run(arguments: argparse.Namespace) -> None:
    """Make the variations."""
    check_options(arguments)
    check_methods(arguments.method, arguments.method_option)
    preset = (arguments.method or PRESETS[0]).strip().lower()
    if preset in PRESETS:
        arguments.method = preset
        return make(arguments, None)
    from seecoder.sampling.methods.registry import build_methods

    return make(arguments, build_methods(arguments.method, arguments.method_option))


def make(arguments: argparse.Namespace, methods: "list[Method] | None", *, aspect: int = 1) -> None:
    """Make and write pictures, whatever the methods.

    Args:
        arguments: The parsed options of this command.
        methods: How to sample; where `arguments.method` is a preset, it decides.
        aspect: Width by height where no --width was given.
    """
    from seecoder.pipelines.batches import Batches, default_batch_size

    seeds = seeds_of(arguments.seed, arguments.count)
    arguments.pictures = files_of(arguments.pictures)
    opened = open_pictures(arguments)
    jobs = make_jobs(arguments, opened)
    out = Path(arguments.out)
    files = [[out / f"{place:04d}-{job.name}-seed{seed}.png" for seed in seeds] for place, job in enumerate(jobs, 1)]
    sheet = sheet_path(arguments.sheet, out)
    results = [file for row in files for file in row]
    old_previews = [path for file in results for path in out.glob(f"{glob.escape(file.stem)}-stage*.png")]
    written = [*results, *old_previews, out / SETTINGS_NAME, *filter(None, [sheet])]
    check_new(written, arguments.overwrite, input_files(arguments))
    pipe = load_pipeline(arguments)
    if arguments.guidance is None:
        arguments.guidance = pipe.default_guidance  # the settings keep what was used
    (height, width), native = result_sizes(arguments, pipe, aspect)
    check_space(out, _PIXEL_BYTES * height * width * len(results) * (1 + arguments.previews))
    if sheet is not None:
        _check_sheet(sheet, jobs, len(seeds), (width, height))
    if arguments.method in PRESETS:
        methods = _settle_preset(arguments, (height, width), native)
    given = pipeline_arguments(arguments, opened) | negative_arguments(arguments, pipe, opened)
    given |= {"height": height, "width": width, "method": with_regions(methods, arguments, pipe, opened)}
    cells = (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    batch = arguments.batch or default_batch_size(pipe.unet, cells, pipe.device, arguments.view_batch)
    batch = min(batch, len(results))
    cost = {"branches": 1 + (arguments.guidance > 1), "settings": dict(arguments.method_option)}
    windows = count_windows(arguments.method or "", (height, width), native, steps=arguments.steps, **cost)
    say(
        f"{len(results)} pictures of {height}x{width} to {out}, {batch} at a time: "
        f"{len(jobs)} contexts, seeds {', '.join(map(str, seeds))}, {arguments.steps} steps, "
        f"method {arguments.method or 'plain'}, about {windows:,} native-sized windows a picture"
    )
    variations = [
        Variation(job, seed, file)
        for job, row in zip(jobs, files, strict=True)
        for seed, file in zip(seeds, row, strict=True)
    ]
    entries = [(variation.job.arguments, variation.seed) for variation in variations]
    records: list[dict[str, Any]] = []
    told: set[str] = set()
    for place, image, notes in Batches(pipe, given, batch, _watcher(pipe, variations, arguments.previews)).run(entries):
        made = variations[place]
        for note in [note for note in notes if note not in told]:  # once for all pictures that it holds for
            told.add(note)
            say(f"{made.file.name}: {note}")
        _write_picture(image, made.file)
        records.append({"file": made.file.name, "seed": made.seed, "sources": made.job.sources, "notes": notes})
    try:
        if sheet is not None:
            _write_sheet(sheet, jobs, seeds, files)
    finally:
        _write_settings(arguments, records)


def _watcher(
    pipe: "SeeCoderPipeline | SeeCoderXLPipeline", variations: Sequence[Variation], previews: bool
) -> Callable[[Sequence[int]], dict[str, Any]]:
    """What names the progress bar of every batch, and writes what its stages have reached."""

    def watch(places: Sequence[int]) -> dict[str, Any]:
        batch = [variations[place] for place in places]
        names = batch[0].file.name if len(batch) == 1 else f"{len(batch)} pictures from {batch[0].file.name}"
        pipe.set_progress_bar_config(desc=names, leave=False, disable=None)  # None: only at a terminal

        def write_stage(pipe: Any, stage: Any, images: Any) -> None:
            for variation, image in zip(batch, images, strict=True):
                path = variation.file.with_name(f"{variation.file.stem}-stage{stage.stage_index + 1}.png")
                _write_picture(image, path, f": {stage.stage}, {image.height}x{image.width}")

        return {"callback_on_stage_end": write_stage if previews else None}

    return watch


def result_sizes(
    arguments: argparse.Namespace, pipe: "SeeCoderPipeline | SeeCoderXLPipeline", aspect: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) in pixels of the results, and of what the base was trained at.

    Args:
        arguments: The parsed options.
        pipe: The pipeline.
        aspect: Width by height where no --width was given.

    Raises:
        ValueError: No size was given, and the base does not say what it was trained at.
    """
    cell, height, width = pipe.vae_scale_factor, arguments.height, arguments.width
    # A base that does not say what it was trained at is taken at its word if the size is given.
    rows, columns = native_size(pipe.unet, (height // cell, width // cell) if height and width else None)
    height = height or rows * cell
    return (height, width or (columns * cell if aspect == 1 else height * aspect)), (rows * cell, columns * cell)


def _settle_preset(
    arguments: argparse.Namespace, size: tuple[int, int], native: tuple[int, int]
) -> "list[Method] | None":
    """The methods of a preset, said with their cost, and noted in the options as if they had been given."""
    from seecoder.sampling.methods.registry import build_methods

    names, settings, about = settled_preset(arguments.method, size, native, arguments.steps, arguments.guidance)
    if about:
        say(f"--method {about}; --method list shows all")
    arguments.method, arguments.method_option = names or "plain", list(settings.items())
    return build_methods(arguments.method, arguments.method_option)


def _check_sheet(path: Path, jobs: list[Job], seeds: int, size: tuple[int, int]) -> None:
    """Refuse a sheet that its format cannot hold; `size` is (width, height) of a result.

    Raises:
        ValueError: It would be too large.
    """
    from seecoder.images.saving import FORMATS, MAX_SIDE
    from seecoder.images.sheet import sheet_size

    rows = [[*(picture.size for picture, _ in job.thumbnails), *[size] * seeds] for job in jobs]
    width, height = sheet_size(_as_page(rows), THUMBNAIL_SIDE)
    limit = MAX_SIDE[FORMATS[path.suffix.lower()]]
    if max(width, height) > limit:
        raise ValueError(
            f"`--sheet`={path} would have {width:,} x {height:,} pixels and must have at most {limit:,} a side. Give "
            "it a name that ends in .png, or leave it out with --sheet ''."
        )


def _as_page(rows: list[list[Entry]]) -> list[list[Entry]]:
    """Rows of one entry each as a page, which is easier to look at than a strip."""
    if max(len(row) for row in rows) > 1:
        return rows
    flat = [row[0] for row in rows]
    return [flat[start : start + _COLUMNS] for start in range(0, len(flat), _COLUMNS)]


def _write_sheet(path: Path, jobs: list[Job], seeds: list[int], files: list[list[Path]]) -> None:
    """One row a context: its pictures first, then its variations."""
    from seecoder.images.sheet import contact_sheet

    rows = _as_page(
        [
            [*job.thumbnails, *((_thumbnail(file), f"seed {seed}") for seed, file in zip(seeds, row, strict=True))]
            for job, row in zip(jobs, files, strict=True)
        ]
    )
    pictures = [[picture for picture, _ in row] for row in rows]
    labels = [[label for _, label in row] for row in rows]
    _write_picture(contact_sheet(pictures, labels, THUMBNAIL_SIDE), path)


def _write_picture(picture: "Image.Image", path: Path, remark: str = "") -> None:
    """Write a picture into its folder, which is made if there is none, and say so; `remark` ends the line."""
    from seecoder.images.saving import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)
    say(f"wrote {path}{remark}")


def _thumbnail(file: Path) -> "Image.Image":
    """A small copy of a picture of ours, which may be larger than what is accepted from elsewhere."""
    from PIL.PngImagePlugin import PngImageFile  # unlike `Image.open` it knows no limit

    with PngImageFile(file) as image:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        return image.copy()


def _write_settings(arguments: argparse.Namespace, pictures: list[dict[str, Any]]) -> None:
    """Written last: a folder that has it is complete."""
    from seecoder import __version__
    from seecoder.weights.atomic import write_text

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "debug", "command")}
    settings = {"seecoder": __version__, "command": arguments.command, "options": options, "pictures": pictures}
    write_text(Path(arguments.out) / SETTINGS_NAME, json.dumps(settings, indent=2, default=str) + "\n")

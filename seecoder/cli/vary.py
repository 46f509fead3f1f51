"""Make variations of pictures.

Every PICTURE is encoded and varied once for every seed; with --together all of them make one context. Pictures, a
contact sheet and settings.json (all that is needed to do it again) are written to --out; names there are a number, the
input's name and the seed.

  seecoder vary cat.jpg --base sd-1.5 --encoder my-encoder --out cats --count 4
  seecoder vary cat.jpg dog.jpg --together --weights 2 1 --base sd-1.5 --encoder my-encoder --out both
  seecoder vary cat.jpg --base sd-1.5 --encoder my-encoder --out large --height 2048 --width 2048 --method demofusion

Methods (--method, several with commas where they compose): multidiffusion, demofusion, scalecrafter, syncdiffusion and
what else `seecoder.sampling` offers; their settings with --method-option. With multidiffusion parts of the result may
follow pictures of their own:

  seecoder vary room.jpg --region mask.png=cat.jpg --method multidiffusion --base sd-1.5 --encoder my-encoder --out in
"""

import argparse
import glob
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seecoder.cli.console import check_new, safe_name, say
from seecoder.cli.methods import build_methods
from seecoder.cli.opening import load_pipeline
from seecoder.cli.options import add_base_options, add_image_size, add_sampling_options, positive_int, seed, weight
from seecoder.cli.regions import add_regions, with_regions

HELP = "make variations of pictures"
SETTINGS_NAME = "settings.json"
_COLUMNS = 8
_CELL = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "pictures", nargs="*", metavar="PICTURE", help="pictures to vary; none if --encoder names contexts"
    )
    add_base_options(parser)
    add_sampling_options(parser, method=None)
    group = parser.add_argument_group("what to make")
    group.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    group.add_argument("--seed", type=seed, nargs="+", default=[0], help="one seed a variation")
    group.add_argument("--count", type=positive_int, help="variations a picture; seeds count up from a single --seed")
    group.add_argument("--together", action="store_true", help="make one context of all pictures")
    add_image_size(group)
    group.add_argument("--weights", type=weight, nargs="+", help="with --together: one number a picture")
    group.add_argument(
        "--concatenate", action="store_true", help="with --together: put the tokens side by side, do not average"
    )
    group.add_argument(
        "--start-image", metavar="PICTURE", help="enlarge this picture (demofusion) instead of starting from noise"
    )
    group.add_argument(
        "--sheet", default="sheet.png", metavar="NAME", help="contact sheet: a name in --out, or a path; '' for none"
    )
    add_regions(group)
    group.add_argument(
        "--previews", action="store_true", help="also write what each stage of a method with several has reached"
    )
    group.add_argument("--overwrite", action="store_true", help="write over existing files")


@dataclass(frozen=True)
class Job:
    """One context to vary: how to call it, what to pass to the pipeline, and the pictures it came from."""

    name: str
    arguments: dict[str, Any]
    sources: list[str]


def seeds_of(first: list[int], count: int | None) -> list[int]:
    """Make one seed a variation.

    Args:
        first: what --seed gave.
        count: what --count gave, or None.

    Raises:
        ValueError: several seeds, and a count that contradicts them.
    """
    if count is None or count == len(first):
        return first
    if len(first) > 1:
        raise ValueError(
            f"`--count` {count} contradicts the {len(first)} seeds of `--seed`; give one seed, or leave the count out."
        )
    return list(range(first[0], first[0] + count))


def run(arguments: argparse.Namespace) -> None:
    """Make the variations."""
    make(arguments, build_methods(arguments.method, arguments.method_option), command="vary")


def make(arguments: argparse.Namespace, methods: list[Any] | None, *, command: str, aspect: int = 1) -> None:
    """Make and write pictures, whatever the methods.

    Args:
        arguments: the parsed options of this command.
        methods: how to sample.
        command: the command's name, for the settings file.
        aspect: width by height where no --width was given.
    """
    seeds = seeds_of(arguments.seed, arguments.count)
    _check_together(arguments)
    _check_pictures(arguments)
    out = Path(arguments.out)
    files = [_files(out, index, name, seeds) for index, name in enumerate(_names(arguments))]
    sheet = sheet_path(arguments.sheet, out)
    old_previews = [path for row in files for file in row for path in out.glob(f"{glob.escape(file.stem)}-stage*.png")]
    check_new(
        [*(file for row in files for file in row), *old_previews, out / SETTINGS_NAME, *filter(None, [sheet])],
        arguments.overwrite,
    )
    pipe, contexts = load_pipeline(arguments)
    jobs = _jobs(arguments, contexts)
    if contexts is not None:  # only the file knew how many there are
        files = [_files(out, index, job.name, seeds) for index, job in enumerate(jobs)]
        check_new([file for row in files for file in row], arguments.overwrite)
    given = pipeline_arguments(arguments, with_regions(methods, arguments, pipe), pipe, aspect)
    say(
        f"{len(jobs) * len(seeds)} pictures of {given['height']}x{given['width']} to {out}: {len(jobs)} contexts, "
        f"seeds "
        f"{', '.join(map(str, seeds))}, {arguments.steps} steps, method {arguments.method or 'plain'}"
    )
    records = []
    for index, (job, row) in enumerate(zip(jobs, files, strict=True)):
        records.append(_vary(pipe, job, seeds, row, given, arguments.previews))
        if len(jobs) > 1:
            say(f"{index + 1} of {len(jobs)} contexts done")
    if sheet is not None:
        _write_sheet(sheet, jobs, seeds, files)
    _write_settings(arguments, command, [record for row in records for record in row])


def _files(out: Path, index: int, name: str, seeds: list[int]) -> list[Path]:
    return [out / f"{index + 1:04d}-{name}-seed{number}.png" for number in seeds]


def _check_pictures(arguments: argparse.Namespace) -> None:
    """Open all pictures before anything is loaded, so that a bad one costs no time."""
    from seecoder.images.loading import load_image

    of_regions = [path for pair in arguments.region for path in pair]
    for picture in [*arguments.pictures, arguments.control_image, arguments.start_image, *of_regions]:
        if picture is not None:
            load_image(picture)


def _check_together(arguments: argparse.Namespace) -> None:
    if arguments.weights is not None and not arguments.together:
        raise ValueError("`--weights` has no effect without `--together`.")
    if arguments.concatenate and not arguments.together:
        raise ValueError("`--concatenate` has no effect without `--together`.")
    if arguments.weights is not None and len(arguments.weights) != len(arguments.pictures):
        raise ValueError(f"`--weights` has {len(arguments.weights)} numbers for {len(arguments.pictures)} pictures.")
    if arguments.concatenate and arguments.weights is not None:
        raise ValueError("`--weights` have no effect with `--concatenate`; leave one of them out.")


def sheet_path(sheet: str, out: Path) -> Path | None:
    """Say where the contact sheet goes.

    Args:
        sheet: what --sheet gave: a plain name lies in `out`, a path is taken as it is, "" is no sheet.
        out: what --out gave.

    Raises:
        ValueError: no ending of a picture.
    """
    if not sheet:
        return None
    if Path(sheet).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"`--sheet` {sheet!r} must end in .png, .jpg or .webp.")
    return out / sheet if Path(sheet).name == sheet else Path(sheet)


def _names(arguments: argparse.Namespace) -> list[str]:
    if arguments.together:
        return ["together"]
    return [safe_name(Path(picture).stem) for picture in arguments.pictures]


def _jobs(arguments: argparse.Namespace, contexts: Any) -> list[Job]:
    from seecoder.encoder.context import ImageSet

    if contexts is not None:
        if arguments.pictures or arguments.together:
            raise ValueError("`--encoder` names ready contexts; PICTURE and --together have no effect with them.")
        jobs = []
        for row in range(len(contexts.context)):
            given = {"context": contexts.context[row : row + 1]}
            if contexts.pooled is not None:
                given["pooled_context"] = contexts.pooled[row : row + 1]
            jobs.append(Job("context", given, [f"{arguments.encoder}[{row}]"]))
        return jobs
    if not arguments.pictures:
        raise ValueError("give at least one PICTURE, or contexts with `--encoder`.")
    if arguments.together:
        combine = "concatenate" if arguments.concatenate else "average"
        pictures = ImageSet(arguments.pictures, arguments.weights, combine)
        return [Job("together", {"image": pictures}, arguments.pictures)]
    names = _names(arguments)
    return [Job(name, {"image": path}, [path]) for name, path in zip(names, arguments.pictures, strict=True)]


def pipeline_arguments(
    arguments: argparse.Namespace, methods: list[Any] | None, pipe: Any, aspect: int = 1
) -> dict[str, Any]:
    """Translate the options of `add_sampling_options` into arguments of a pipeline's call.

    Args:
        arguments: the parsed options.
        methods: how to sample.
        pipe: the pipeline, for its native size.
        aspect: width by height where no --width was given.
    """
    from seecoder.base_model.facts import native_size

    native = [side * pipe.vae_scale_factor for side in native_size(pipe.unet)]
    height = arguments.height or native[0]
    given = {
        "height": height,
        "width": arguments.width or (native[1] if aspect == 1 else height * aspect),
        "method": methods,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "guidance_rescale": arguments.guidance_rescale,
        "eta": arguments.eta,
        "image_size": arguments.image_size,
        "context_scale": arguments.context_scale,
        "view_batch_size": arguments.view_batch,
        "autoencoder_memory": arguments.autoencoder_memory,
        "start_image": arguments.start_image,
    }
    if arguments.control_image:
        given |= {"control_image": arguments.control_image, "controlnet_conditioning_scale": arguments.control_scale}
    return given


def _vary(
    pipe: Any, job: Job, seeds: list[int], files: list[Path], given: dict[str, Any], previews: bool
) -> list[dict[str, Any]]:
    """Make all variations of one context, each written as soon as it is done."""
    import torch

    from seecoder.images.loading import save_image

    conditions = dict(job.arguments)
    if "image" in conditions:  # encoded once, not once a seed
        encoded = pipe.encode_context(conditions.pop("image"), image_size=given["image_size"])
        names = ("context", "pooled_context")
        conditions |= dict(zip(names, encoded if isinstance(encoded, tuple) else (encoded,), strict=False))
    records = []
    for number, file in zip(seeds, files, strict=True):
        pipe.set_progress_bar_config(desc=file.name, leave=False, disable=None)  # None: only at a terminal
        show = _preview_writer(file) if previews else None
        generator = torch.Generator().manual_seed(number)
        output = pipe(**conditions, **given, generator=generator, callback_on_stage_end=show)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(output.images[0], file)
        for note in output.notes:
            say(f"{file.name}: {note}")
        say(f"wrote {file}")
        records.append({"file": file.name, "seed": number, "sources": job.sources, "notes": output.notes})
    return records


def _preview_writer(file: Path) -> Callable[[Any, Any, Any], None]:
    """What writes the result of every stage but the last beside the file of the whole: NAME-stage1.png and so on."""
    from seecoder.images.loading import save_image

    def write(pipe: Any, stage: Any, images: Any) -> None:
        path = file.with_name(f"{file.stem}-stage{stage.stage_index + 1}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(images[0], path)
        say(f"wrote {path}: {stage.stage}, {images[0].height}x{images[0].width}")

    return write


def _write_sheet(path: Path, jobs: list[Job], seeds: list[int], files: list[list[Path]]) -> None:
    """One row a context: its pictures first, then its variations."""
    from seecoder.images.loading import load_image, save_image, to_pil
    from seecoder.images.sheet import contact_sheet

    rows, labels = [], []
    for job, row in zip(jobs, files, strict=True):
        sources = job.sources if "image" in job.arguments else []
        # 8-bit from here on: sheets of hundreds of large pictures would not fit otherwise.
        shown = [to_pil(load_image(path)) for path in [*sources, *map(str, row)]]
        for picture in shown:
            picture.thumbnail((_CELL, _CELL))
        rows.append(shown)
        labels.append([Path(path).name for path in sources] + [f"seed {number}" for number in seeds])
    if max(len(row) for row in rows) == 1:  # one picture a context: a page is easier to look at than a strip
        flat, texts = [row[0] for row in rows], [row[0] for row in labels]
        rows = [flat[start : start + _COLUMNS] for start in range(0, len(flat), _COLUMNS)]
        labels = [texts[start : start + _COLUMNS] for start in range(0, len(texts), _COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(contact_sheet(rows, labels, _CELL), path)
    say(f"wrote {path}")


def _write_settings(arguments: argparse.Namespace, command: str, pictures: list[dict[str, Any]]) -> None:
    """Written last: a folder that has it is complete."""
    from seecoder import __version__
    from seecoder.weights.atomic import atomic_path

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "debug", "command")}
    settings = {"seecoder": __version__, "command": command, "options": options, "pictures": pictures}
    with atomic_path(Path(arguments.out) / SETTINGS_NAME) as path:
        path.write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")

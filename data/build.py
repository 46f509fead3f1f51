"""`python -m data.build`: make webdataset shards from picture files or from the world, or take stock of existing ones.

    python -m data.build folder PICTURES OUT --size 512 --workers 8
    python -m data.build folder PICTURES OUT --held-out 64    # 64 of them to OUT_held_out, for evaluation
    python -m data.build list FILE OUT
    python -m data.build world OUT --count 20000 --seed 0 --size 64
    python -m data.build world OUT --count 20000 --pairs moved    # the encoder sees a scene, the picture is it, moved
    python -m data.build index FOLDER       # a manifest for shards that others made (img2dataset)
    python -m data.build verify FOLDER      # compare shards with their manifest

Stop it at any time, by any means; the same command goes on where it stopped and ends with the same bytes.
"""

import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from data.command import build_aloud, make_parser, manifest_totals, run_command
from data.shards.building.finding import find_image_files, printable_name, read_image_list, split_held_out
from data.shards.building.image_files import ImageFiles
from data.shards.building.shard_build import Build
from data.shards.building.sources import Source
from data.shards.building.world_scenes import WorldScenes
from data.shards.img2dataset import NEW, make_manifest
from data.shards.index import load
from data.shards.manifest import MANIFEST, read_manifest
from data.shards.reading.skips import check_passed
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import REPEATED, open_shards
from seecoder.checks import require, whole
from seecoder.weights.digests import file_sha256

_MAX_PIXELS_SCALED, _MAX_PIXELS_KEPT = 64_000_000, SquareImage.max_pixels
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run these arguments or the program's; gives 0, or 2 for bad input (one line on stderr), or 130 if interrupted."""
    actions = {"folder": _folder, "list": _list, "world": _world, "index": _index, "verify": _verify}
    return run_command(_parser(), lambda options: actions[options.command](options), arguments)


def byte_size(text: str | int) -> int:
    """Read a size with a unit, such as 500M (10^6 bytes each), 1G or 1GiB (2^30 bytes); a number is kept."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", str(text).strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ArgumentTypeError(f"{text!r} is not a size such as 500M, 1G or 1GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def image_size(text: str | int) -> int | str:
    """Read a number of pixels, or the word `keep`; a number is kept."""
    if text != "keep" and not str(text).isdecimal():
        raise ArgumentTypeError(f"{text!r} is neither `keep` nor a number of pixels")
    return text if text == "keep" else int(text)


def _parser() -> ArgumentParser:
    parser = make_parser("python -m data.build", __doc__)
    commands = parser.add_subcommands(dest="command", title="commands")
    folder, listed = make_parser(), make_parser()
    folder.add_argument("source", type=Path, metavar="PICTURES", help="Folder that is searched, with its subfolders.")
    listed.add_argument("source", type=Path, metavar="FILE", help="Paths are relative to the folder of this file.")
    for command in (folder, listed):
        _add_common_options(command)
        _add_picture_options(command)
    world = make_parser()
    _add_common_options(world)
    world.add_argument("--count", type=int, required=True, help="Number of scenes.")
    world.add_argument("--seed", type=int, default=0, help="Seed of the scenes.")
    world.add_argument("--start", type=int, default=0, help="Number of the first scene: more shards of one seed.")
    world.add_argument("--size", type=int, default=64, help="Height and width in pixels.")
    moved = "moved: pairs of `reference.png`, a scene, and the picture, the same with its object elsewhere and resized."
    world.add_argument("--pairs", type=Literal["moved"] | None, help=moved)
    index, verify = make_parser(), make_parser()
    for command in (index, verify):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="Folder of shards.")
    index.add_argument("--max-bad-rate", type=float, default=0.01, help="Fraction of lost samples that is tolerated.")
    commands.add_subcommand("folder", folder, help="All pictures below a folder.")
    commands.add_subcommand("list", listed, help="The pictures that a text file names, one path a line.")
    commands.add_subcommand("world", world, help="Scenes of the project's procedural world.")
    commands.add_subcommand("index", index, help=f"Write the {MANIFEST} of others' shards, or add sizes to one.")
    commands.add_subcommand("verify", verify, help=f"Compare size and sha256 of all shards with the {MANIFEST}.")
    return parser


def _add_common_options(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help=f"Folder for the shards and their {MANIFEST}.")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="Samples of a shard.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    parser.add_argument("--max-bad-rate", type=float, default=0.01, help="Fraction of bad pictures that is tolerated.")


def _add_picture_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        help="Begin a new shard also when its source files have this size together, e.g. 1G.",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        default="keep",
        metavar="keep|PIXELS",
        help="Scale longer shorter sides down to PIXELS; `keep` copies JPEG, PNG and WebP byte by byte.",
    )
    parser.add_argument(
        "--encode", type=Literal["jpeg", "png", "webp"], default="jpeg", help="Format of scaled pictures."
    )
    parser.add_argument("--quality", type=int, default=95, metavar="1-100", help="Of JPEG and WebP.")
    parser.add_argument("--held-out", type=int, default=0, help="Pictures for OUT_held_out in place of OUT.")
    parser.add_argument("--min-side", type=int, default=1, help="Pictures with a shorter side below this are bad.")
    parser.add_argument(
        "--max-pixels",
        type=int | None,
        help=f"Larger pictures are bad. By default {_MAX_PIXELS_SCALED:,}; if kept {_MAX_PIXELS_KEPT:,}, as in "
        "training.",
    )


def _folder(options: Namespace) -> None:
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise ValueError(f"`OUT`={options.out} lies in the folder that is read. Choose a folder outside of it.")
    paths, notes = find_image_files(options.source)
    _pictures(options, paths, [printable_name(path.relative_to(options.source)) for path in paths], notes)


def _list(options: Namespace) -> None:
    paths, notes = read_image_list(options.source)
    _pictures(options, paths, [printable_name(path) for path in paths], notes)


def _pictures(options: Namespace, paths: list[Path], names: list[str], notes: list[str]) -> None:
    for note in notes:
        print(note)
    size = None if options.size == "keep" else options.size
    own = {name: options[name] for name in ("encode", "quality", "min_side")} | {"size": size}
    max_pixels = _MAX_PIXELS_KEPT if size is None else _MAX_PIXELS_SCALED
    own["max_pixels"] = max_pixels if options.max_pixels is None else options.max_pixels
    how = "kept as they are" if size is None else f"scaled down to {size} pixels, as {options.encode}"
    places = options.out, options.out.with_name(f"{options.out.name}_held_out")
    for place, numbers in zip(places, split_held_out(paths, options.held_out), strict=True):
        if numbers or not paths:
            chosen = [paths[number] for number in numbers], [names[number] for number in numbers]
            what = f"{len(numbers):,} pictures from {options.source}, {how}"
            _build(options, place, ImageFiles.from_paths(*chosen, **own), what, options.shard_size)


def _world(options: Namespace) -> None:
    source = WorldScenes(options.count, options.seed, options.size, options.start, options.pairs)
    _build(options, options.out, source, f"{options.count:,} scenes of {options.size} x {options.size} pixels", None)


def _build(options: Namespace, out: Path, source: Source, what: str, shard_bytes: int | None) -> None:
    require("workers", options.workers, whole(0))
    build = Build(source, out, options.samples_per_shard, shard_bytes, options.max_bad_rate)
    shards = len(build.ranges())
    print(f"{what} -> {shards:,} shards in {out}; what is finished there is verified and kept", flush=True)
    build_aloud(build, options.workers)


def _index(options: Namespace) -> None:
    print(f"reading every tar file in {options.folder} once; writing {MANIFEST} and an index beside each", flush=True)
    manifest, passed = make_manifest(options.folder, options.max_bad_rate)
    repeated = [skip for skip in open_shards(options.folder).passed if skip.reason == REPEATED]
    check_passed(repeated, manifest.samples, 1.0)
    print(f"{'written, with what is named above' if passed or repeated else 'done'}: {manifest_totals(manifest)}")


def _verify(options: Namespace) -> None:
    manifest = read_manifest(options.folder)
    print(f"comparing {manifest_totals(manifest)} in {options.folder} with {MANIFEST}", flush=True)
    passed = open_shards(options.folder).passed
    check_passed(passed, manifest.samples, 1.0)
    faults = [f"{Path(skip.name).name} is not in the manifest" for skip in passed if skip.reason == NEW]
    for shard in tqdm(manifest.shards, unit="shard"):
        path = options.folder / shard.name
        if not path.is_file():
            faults.append(f"{shard.name} is missing")
        elif path.stat().st_size != (shard.bytes or 0):
            faults.append(f"{shard.name} has {path.stat().st_size:,} bytes instead of {shard.bytes or 0:,}")
        elif file_sha256(path) != shard.sha256:
            faults.append(f"{shard.name} has another sha256")
        elif (count := len(load(path, manifest.members, shard.sha256).samples)) != shard.samples:
            faults.append(f"{shard.name} has {count:,} samples instead of {shard.samples:,}")
    if faults:
        more = f", and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(
            f"{len(faults)} of {len(manifest.shards)} shards are not as they were: {'; '.join(faults[:10])}{more}"
        )
    print(f"{'but for what was passed over' if passed else 'done'}: all shards are as the manifest says")


if __name__ == "__main__":
    sys.exit(main())

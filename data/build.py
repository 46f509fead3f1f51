"""`python -m data.build`: make webdataset shards from picture files or from the world, or take stock of existing ones.

    python -m data.build folder PICTURES OUT --size 512 --workers 8
    python -m data.build list FILE OUT
    python -m data.build world OUT --count 20000 --seed 0 --size 64
    python -m data.build index FOLDER       # a manifest for shards that others made (img2dataset)
    python -m data.build verify FOLDER      # compare shards with their manifest

Stop it at any time, by any means; the same command goes on where it stopped and ends with the same bytes.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.shards.building.image_files import (
    ImageFiles,
    Source,
    WorldScenes,
    find_image_files,
    printable_name,
    read_image_list,
)
from data.shards.building.shard_build import REPORT, Build, claimed_folder, run_build
from data.shards.img2dataset import make_manifest
from data.shards.manifest import MANIFEST, Manifest, read_manifest
from data.shards.reading.square_image import SquareImage
from seecoder.weights.digests import file_sha256

_MOST_PIXELS_SCALED, _MOST_PIXELS_KEPT = 64_000_000, SquareImage.max_pixels
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; `sys.argv` when not given.

    Returns:
        Exit code: 0; 2 for bad input, with one line on stderr; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.action(options)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    folder = commands.add_parser("folder", help="all pictures below a folder")
    folder.add_argument("source", type=Path, metavar="PICTURES", help="folder that is searched, with its subfolders")
    _add_picture_options(folder)
    folder.set_defaults(action=_folder)

    listed = commands.add_parser("list", help="the pictures that a text file names, one path a line")
    listed.add_argument("source", type=Path, metavar="FILE", help="paths are relative to the folder of this file")
    _add_picture_options(listed)
    listed.set_defaults(action=_list)

    world = commands.add_parser("world", help="scenes of the project's procedural world")
    _add_common_options(world)
    world.add_argument("--count", type=int, required=True, help="number of scenes")
    world.add_argument("--seed", type=int, default=0, help="seed of the scenes (0)")
    world.add_argument("--start", type=int, default=0, help="number of the first scene: more shards of one seed (0)")
    world.add_argument("--size", type=int, default=64, help="height and width in pixels (64)")
    world.set_defaults(action=_world)

    for name, action, text in (
        ("index", _index, f"write the {MANIFEST} of shards that others made"),
        ("verify", _verify, f"compare size and sha256 of all shards with the {MANIFEST}"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, metavar="FOLDER")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(action=action)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help=f"folder for the shards and their {MANIFEST}")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="(1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument(
        "--max-bad-rate", type=float, default=0.01, help="share of bad pictures that is tolerated (0.01)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_picture_options(parser: argparse.ArgumentParser) -> None:
    _add_common_options(parser)
    parser.add_argument(
        "--shard-size",
        type=_bytes,
        help="begin a new shard also when its source files have this size together, e.g. 1G",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=None,
        metavar="keep|PIXELS",
        help="scale longer shorter sides down to PIXELS; `keep` copies JPEG, PNG and WebP byte by byte (keep)",
    )
    parser.add_argument("--encode", choices=("jpeg", "png", "webp"), default="jpeg", help="of scaled pictures (jpeg)")
    parser.add_argument("--quality", type=int, choices=range(1, 101), default=95, metavar="1-100", help="(95)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        help=f"larger pictures are bad ({_MOST_PIXELS_SCALED:,}; if kept {_MOST_PIXELS_KEPT:,}, as in training)",
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M, 1G or 1GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _size(text: str) -> int | None:
    if text == "keep":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither `keep` nor a number of pixels")
    return int(text)


def _folder(options: argparse.Namespace) -> int:
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise ValueError(f"`OUT`={options.out} lies in the folder that is read. Choose a folder outside of it.")
    paths, others = find_image_files(options.source)
    if others:
        print(f"{others:,} files in {options.source} are no pictures by their names and are left out")
    return _pictures(options, paths, [printable_name(path.relative_to(options.source)) for path in paths])


def _list(options: argparse.Namespace) -> int:
    paths = read_image_list(options.source)
    return _pictures(options, paths, [printable_name(path) for path in paths])


def _pictures(options: argparse.Namespace, paths: list[Path], names: list[str]) -> int:
    most = options.max_pixels
    if most is None:
        most = _MOST_PIXELS_KEPT if options.size is None else _MOST_PIXELS_SCALED
    if most < 1:
        raise ValueError(f"`max_pixels`={most} must be at least 1.")
    source = ImageFiles.of(paths, names, options.size, options.encode, options.quality, most)
    how = "kept as they are" if options.size is None else f"scaled down to {options.size} pixels, as {options.encode}"
    return _build(options, source, f"{len(paths):,} pictures from {options.source}, {how}", options.shard_size)


def _world(options: argparse.Namespace) -> int:
    if options.count < 1 or options.start < 0 or options.size < 8:
        raise ValueError(
            f"`count`={options.count}, `start`={options.start}, `size`={options.size}: at least 1, 0 and 8 are needed."
        )
    source = WorldScenes(options.count, options.seed, options.size, options.start)
    return _build(options, source, f"{options.count:,} scenes of {options.size} x {options.size} pixels", None)


def _build(options: argparse.Namespace, source: Source, what: str, shard_bytes: int | None) -> int:
    if options.workers < 0:
        raise ValueError(f"`workers`={options.workers} must not be negative.")
    build = Build(source, options.out, options.samples_per_shard, shard_bytes, options.max_bad_rate)
    shards = len(build.ranges())
    print(f"{what} -> {shards:,} shards in {options.out}; what is finished there is verified and kept", flush=True)
    with (
        claimed_folder(build),
        tqdm(total=len(source), unit="sample", mininterval=1 if sys.stderr.isatty() else 30) as bar,
    ):
        manifest, progress = run_build(build, min(options.workers, shards), bar.update)
    kept = f", {progress.kept:,} of them from an earlier run" if progress.kept else ""
    print(f"done: {_totals(manifest)}{kept}")
    if progress.bad:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in progress.bad.most_common())
        print(f"{progress.bad.total():,} bad pictures left out ({reasons}); they are named in {options.out / REPORT}")
    return 0


def _totals(manifest: Manifest) -> str:
    size = sum(shard.bytes or 0 for shard in manifest.shards)
    return f"{manifest.samples:,} samples in {len(manifest.shards):,} shards, {size / 1e6:,.1f} MB"


def _index(options: argparse.Namespace) -> int:
    print(f"reading every tar file in {options.folder} once; writing {MANIFEST} and an index beside each", flush=True)
    print(f"done: {_totals(make_manifest(options.folder))}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    manifest = read_manifest(options.folder)
    print(f"comparing {_totals(manifest)} in {options.folder} with {MANIFEST}", flush=True)
    faults = []
    for shard in tqdm(manifest.shards, unit="shard"):
        path = options.folder / shard.name
        if not path.is_file():
            faults.append(f"{shard.name} is missing")
        elif path.stat().st_size != shard.bytes:
            faults.append(f"{shard.name} has {path.stat().st_size:,} bytes instead of {shard.bytes:,}")
        elif file_sha256(path) != shard.sha256:
            faults.append(f"{shard.name} has another sha256")
    if faults:
        more = f", and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(
            f"{len(faults)} of {len(manifest.shards)} shards are not as they were: {'; '.join(faults[:10])}{more}"
        )
    print("done: all shards are as the manifest says")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Folders of tar files that others wrote, first of all img2dataset: what is in them, and what is passed over, by name.

img2dataset writes `00000.tar`, `00000_stats.json` and `00000.parquet` for each shard, with members `KEY.jpg`,
`KEY.json` and, where there is a caption, `KEY.txt`. All of it is read as it is; only the picture is required, and the
parquet file is not needed.
"""

import filecmp
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data.shards.building.finding import IMAGE_SUFFIX, files_below
from data.shards.index import MISSING, NO_PICTURE, SHORT, Kinds, ShardIndex, load, read_headers, write_index
from data.shards.manifest import IMAGE_MEMBERS, MANIFEST, SHARD_NAME, Manifest, Shard, read_manifest, write_manifest
from data.shards.picture_sizes import measure_pictures, picture_sizes
from data.shards.reading.skips import Skip, check_passed
from seecoder.weights.digests import file_sha256

NEW = "shard that is not in the manifest (`python -m data.build index` takes it in)"
# Compressed, or as downloads leave them: unfinished, numbered, set aside.
LIKE_A_SHARD = re.compile(
    r"(?i)\.(tar|t[gxbz]z2?|tzst|tar\.(\w*z\w*|\w*part\w*|te?mp|\w*download|incomplete|aria2|!qb|bak|\d+))$"
)
UNFINISHED = "build.json"  # lies in the folder of a build until its manifest is written
OF_SHARDS = re.compile(rf"{LIKE_A_SHARD.pattern}|^({MANIFEST}|{UNFINISHED})$")
OTHER_PICTURE = "no picture under a usual name (`image_member` takes other names)"
UNOPENED = "picture that cannot be opened"
HIDDEN, COPY, UNLISTED = "hidden file", "copy of another shard", "folder that cannot be listed"
TAKEN = "is taken for the picture, `image_member` chooses"
IN_FOLDERS = "name in several folders of a shard: each is a picture to train on (a mask is called `000.mask.png`)"
BELOW = "folder of shards inside of one that has shards of its own (name it, too, and it is read)"

_Odd = tuple[str, str, int]  # the reason, particulars, lost samples
_NOTES = "passed_over"  # in the settings of a manifest, where versions before leave it alone
_NUMBERED = re.compile(r" ?\(\d+\)| - Copy| copy( \d+)?")  # what browsers and desktops put into the name of a copy


def take_stock(
    folder: Path, manifest: Manifest | None = None, only: Collection[str] = (), needed: Kinds = (IMAGE_MEMBERS,)
) -> tuple[list[Shard], list[Skip]]:
    """Look at every file of a folder that is a shard, or has the name of one.

    The count of samples comes from the manifest, from `NAME_stats.json` ("successes") where img2dataset left one, so
    that a shard that was cut off later is noticed, or from the tar file's headers. What a file held that ends early is
    not known then: it is taken to be as much as others hold.

    Args:
        folder: The folder.
        manifest: What it should hold; None: all tar files that are there.
        only: Names of the files that are meant; none: all.
        needed: Kinds of the picture and of the members that a training reads beside it.

    Returns:
        The shards, and what is passed over.

    Raises:
        FileNotFoundError: The folder has no tar files.
    """
    known = {shard.name: shard for shard in manifest.shards} if manifest else {}
    there = {path.name for path in folder.iterdir() if LIKE_A_SHARD.search(path.name)}
    names = set(only) or known.keys() | there
    if not names:
        below = ", ".join(f"`{path}`" for path in sorted({file.parent for file in folder.rglob("*.tar")})[:10])
        way = f"Give the folders that do: {below}" if below else "Make shards with `python -m data.build`"
        raise FileNotFoundError(f"`{folder}` holds no .tar files. {way}.")
    found: dict[str, tuple[int | None, int, str]] = {}  # samples that were promised, those that are there, the fault
    shards, passed = [], []
    for name in tqdm(sorted(names), desc="looking at shards", unit="shard", disable=len(names) < 20):
        promised = known[name].samples if name in known else _successes(folder / name)
        index = _look(folder / name, known.get(name), promised)
        found[name] = promised, len(index.samples) if index else promised or 0, index.fault if index else ""
        if name in known or manifest is None:
            odd = [] if index else _noted(manifest, name)
            if index or needed != (IMAGE_MEMBERS,):  # what is noted as lost is of the usual kinds
                odd = [row for row in odd if (row[0] == UNOPENED and needed[0] == IMAGE_MEMBERS) or not row[2]]
                odd = [row for row in odd if not row[0].endswith(TAKEN)]
                odd += _odd_members(index or load(folder / name), needed)
            passed += _skips(folder / name, odd)
    passed += [Skip(-1, what, str(path), f"`{path}`", 0) for path, what in folders_below(folder).items() if not only]
    most = max(here for _, here, _ in found.values())
    for name, (promised, here, reason) in found.items():
        path, is_extra = folder / name, reason in (HIDDEN, COPY)
        if is_extra or (manifest and name not in known and reason != MISSING):
            passed.append(Skip(-1, reason if is_extra else NEW, str(path), f"`{path}` ({here:,} samples)", 0))
            continue
        total = promised or (max(most, here + 1) if reason or not here else here)
        if reason or here < total:
            reason, inside = reason or SHORT, 0 if promised is not None else -1
            detail = f"`{path}`: {reason} ({here} of {total} samples)"
            passed.append(Skip(inside, reason, str(path), detail, max(0, total - here)))
        if promised or here:
            shards.append(known.get(name) or Shard(name, promised or here))
    return shards, passed


def folders_below(folder: Path) -> dict[Path, str]:
    """Folders inside of one, by their paths: those that hold shards, and those that cannot be listed."""
    failed: list[OSError] = []
    found = {path.parent: BELOW for path in files_below(folder, [], failed) if OF_SHARDS.search(path.name)}
    found |= {Path(error.filename): UNLISTED for error in failed}
    found.pop(folder, None)
    return found


def _look(path: Path, shard: Shard | None, promised: int | None) -> ShardIndex | None:
    """What a file holds; None where that was counted, and it is whole by its size or its end."""
    if path.name.startswith("."):
        return ShardIndex([], HIDDEN)
    original = path.with_name(_NUMBERED.sub("", path.name))
    if original != path and original.is_file() and filecmp.cmp(path, original, shallow=False):
        return ShardIndex([], COPY)
    if not SHARD_NAME.fullmatch(path.name):
        return ShardIndex([], "name that is not `LETTERS_AND_DIGITS.tar`")
    if promised is not None and path.is_file():
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1024))
            if size == shard.bytes if shard else size >= 1024 and not any(file.read()):
                return None
    return read_headers(path)


def _skips(path: Path | str, odd: Iterable[_Odd]) -> list[Skip]:
    return [Skip(0, what, f"{path}: {what}", f"`{path}`: {what} ({detail})", lost) for what, detail, lost in odd]


def _odd_members(index: ShardIndex, needed: Kinds = (IMAGE_MEMBERS,)) -> Iterator[_Odd]:
    """Samples without a picture or what is needed beside it, and members that belong to no sample."""
    here, lacking, said = len(index.samples), defaultdict[str, list[str]](list), index.passed.copy()
    for key, kinds in index.samples:
        if len(pictures := [kind for kind in needed[0] if kind in kinds]) > 1:
            said[f"{' beside '.join(pictures)}: {pictures[0]} {TAKEN}"] += 1
        absent = next((group for group in needed if kinds.keys().isdisjoint(group)), None)
        if absent == needed[0]:
            has_other = any(IMAGE_SUFFIX.fullmatch(f".{kind.rpartition('.')[2]}") for kind in kinds)
            lacking[OTHER_PICTURE if has_other else NO_PICTURE].append(", ".join(kinds))
        elif absent:
            lacking[f"no `{absent[0].rpartition('.')[0]}`"].append(key)
    for what, members in lacking.items():
        yield what, f"{len(members)} of {here}, as with {members[0][:80]!a}", len(members)
    names = Counter(key.rpartition("/")[2] for key in {key for key, _ in index.samples})
    if 2 * (several := sum(count for count in names.values() if count > 1)) > here:
        said[IN_FOLDERS] = several
    for what, count in said.items():
        yield what, f"{count:,} members", 0


def _odd_beside(path: Path, index: ShardIndex, shard: Shard) -> Iterator[_Odd]:
    """Pictures beside the pictures, such as masks, that the others have; said here, lost to who trains on them."""
    kinds = (kind.rpartition(".") for _, members in index.samples for kind in members)
    for name in sorted({name for name, _, kind in kinds if name and kind in IMAGE_MEMBERS}):
        pictures, beside = picture_sizes(shard), replace(shard, sizes=measure_pictures(path, index, f"{name}."))
        sizes = picture_sizes(beside)
        is_other = (sizes != pictures).any(1) & pictures.all(1)
        is_odd = is_other if 2 * is_other.sum() <= shard.samples else (sizes == 0).all(1)  # references have any size
        has = sum(any(f"{name}.{kind}" in members for kind in IMAGE_MEMBERS) for _, members in index.samples)
        if is_odd.any() and 2 * has >= shard.samples:
            key = index.samples[is_odd.argmax()][0][:80]
            yield f"no `{name}`, or of no use", f"{is_odd.sum()} of {shard.samples}, as with {key!a}", 0


def noted_skips(manifest: Manifest, name: str, address: str) -> list[Skip]:
    """What is passed over inside of a shard on a server, by its manifest alone."""
    return _skips(address, _noted(manifest, name))


def _noted(manifest: Manifest | None, name: str) -> list[_Odd]:
    """What `make_manifest` wrote of a shard's `_odd_members`; nothing where the manifest is of another kind."""
    try:
        rows = manifest.settings[_NOTES][name] if manifest else ()
        return [(str(what), str(detail), int(lost)) for what, detail, lost in rows]
    except (LookupError, TypeError, ValueError, OverflowError):
        return []


def _successes(shard: Path) -> int | None:
    """Samples that img2dataset says it wrote into a shard."""
    try:
        count = json.loads(shard.with_name(shard.stem + "_stats.json").read_bytes())["successes"]
        return Shard(shard.name, count).samples
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def make_manifest(folder: Path, ceiling: float = 0.01) -> tuple[Manifest, list[Skip]]:
    """Measure every tar file of a folder and write `manifest.json` and the indices beside them.

    Shards that are damaged, or shorter than img2dataset says, are left out: what a manifest states becomes the truth
    that later losses are measured against. Done again, it takes in shards that came later, behind those that it has,
    and adds what versions before did not write: sizes of pictures, and what is odd about members.

    Args:
        folder: The folder.
        ceiling: Largest tolerated fraction of lost samples, in [0, 1].

    Returns:
        The manifest, and what is passed over.

    Raises:
        FileNotFoundError: The folder has no tar files.
        FileExistsError: It has a manifest already, which was made otherwise or has all of them.
        ValueError: Too many samples are lost, or a shard is not what the manifest says.
    """
    before = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest((), settings={"kind": "index"})
    is_index = before.settings.get("kind") == "index"
    found, passed = take_stock(folder, None if is_index else before)
    gone = [(folder / row.name, row.samples) for row in before.shards if not os.path.lexists(folder / row.name)]
    passed += [Skip(-1, MISSING, str(path), f"`{path}`: {MISSING}", lost) for path, lost in gone if is_index]
    passed = [skip._replace(samples=0) if skip.reason == OTHER_PICTURE else skip for skip in passed]
    known = {shard.name for shard in before.shards}
    counts = {str(folder / shard.name): shard.samples for shard in found}
    for row, skip in enumerate(passed):
        if skip.name in counts and Path(skip.name).name not in known:  # with all that could be read of it
            lost = counts.pop(skip.name) + skip.samples * (skip.sample_id < 0)
            passed[row] = skip._replace(sample_id=-1, detail=f"{skip.detail}, and is left out", samples=lost)
    check_passed(passed, sum(counts.values()), ceiling)
    new = [shard for shard in found if shard.name not in known and str(folder / shard.name) in counts]
    lacks_sizes = any(shard.sizes is None for shard in before.shards)
    if before.shards and not (new or lacks_sizes or (is_index and _NOTES not in before.settings)):
        raise FileExistsError(f"`{folder / MANIFEST}` exists already. Remove it first if the shards have changed.")
    shards = []
    for shard in tqdm([*before.shards, *new], desc="indexing", unit="shard"):
        path = folder / shard.name
        if shard.sha256 is None:
            shard = replace(shard, bytes=path.stat().st_size, sha256=file_sha256(path))
            write_index(path, read_headers(path), str(shard.sha256))
        if shard.sizes is None:
            index = load(path, before.members, shard.sha256)
            if len(index.samples) != shard.samples:
                raise ValueError(f"`{path}` has lost samples. Run `python -m data.build verify {folder}`.")
            shard = replace(shard, sizes=measure_pictures(path, index))
        shards.append(shard)
    settings, inside = dict(before.settings), list[Skip]()
    if is_index:
        settings[_NOTES] = {}
        for shard in shards:
            path, index = folder / shard.name, read_headers(folder / shard.name)
            odd = list(_odd_members(index))
            count = int((picture_sizes(shard) == 0).all(1).sum()) - sum(lost for *_, lost in odd)
            new = [(UNOPENED, f"{count} of {shard.samples}", count)] * (count > 0)
            new += _odd_beside(path, index, shard)
            settings[_NOTES] |= {shard.name: [*odd, *new]} if odd or new else {}
            inside += _skips(path, new)
    manifest = replace(before, shards=tuple(shards), settings=settings)
    check_passed(inside, manifest.samples, 1.0)  # only says it
    check_passed([*passed, *inside], manifest.samples, ceiling, log=False)
    write_manifest(folder, manifest)
    return manifest, [*passed, *inside]

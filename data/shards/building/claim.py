"""One build at a time in a folder, and always the same build."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from data.nested import differences
from data.shards.building.shard_build import Build
from data.shards.img2dataset import UNFINISHED
from data.shards.locks import only_process_in
from data.shards.manifest import MANIFEST, read_manifest
from seecoder.weights.atomic import write_text


@contextlib.contextmanager
def claimed_folder(build: Build, *, wait: bool = False) -> Iterator[None]:
    """Make the folder, or see that it belongs to the same build, and keep other builds out of it, or wait for them.

    Raises:
        FileExistsError: The folder holds something else, or another process is building there.
    """
    with only_process_in(build.folder, "building", -1 if wait else 0):
        _check_folder(build)
        for left_behind in build.folder.glob("*.partial"):
            left_behind.unlink(missing_ok=True)
        yield


def is_finished(build: Build) -> bool:
    """Whether the folder holds this build, finished.

    Raises:
        FileExistsError: It holds another build.
    """
    if not (build.folder / MANIFEST).exists():
        return False
    _compare(build, read_manifest(build.folder).settings)
    return True


def _check_folder(build: Build) -> None:
    state = build.folder / UNFINISHED
    if is_finished(build):
        return
    if state.exists():
        _compare(build, json.loads(state.read_text(encoding="utf-8")))
    elif any(build.folder.glob("*.tar")):
        raise FileExistsError(f"`{build.folder}` holds .tar files of unknown origin. Choose an empty or new folder.")
    else:
        write_text(state, json.dumps(build.settings, indent=1) + "\n")


def _compare(build: Build, found: Mapping[str, Any]) -> None:
    changes = ", ".join(f"{name}: {was} there, {now} now" for name, was, now in differences(found, build.settings))
    if changes:
        raise FileExistsError(f"`{build.folder}` holds another build ({changes}). Choose another folder, or remove it.")

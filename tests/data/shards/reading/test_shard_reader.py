"""Raw bytes out of shards, and exact accounts of what is lost."""

import errno
import gc
import io
import json
import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards import index as shard_index
from data.shards.index import index_path, read_headers
from data.shards.reading import shard_reader as reading
from data.shards.reading.shard_reader import INCOMPLETE, NO_PICTURE, OVERSIZED, BadSample, ShardReader
from data.shards.shard_set import open_shards

COUNTS = [5, 6, 7]


def read_all(folder: Path) -> tuple[list[int], Counter[str], set[str]]:
    """Numbers of the samples that were read, losses by reason, and what was at fault."""
    shards = open_shards(folder)
    reader, numbers, reasons, names = ShardReader(shards, {"json"}), [], Counter(), set()
    for shard, count in enumerate(shards.counts):
        for number in range(count):
            try:
                numbers.append(json.loads(reader.read(shard, number)["json"])["number"])
            except BadSample as error:
                reasons[error.reason] += 1
                names.add(error.name.removeprefix(str(folder) + "/"))
    return numbers, reasons, names


def test_every_sample_is_read(make_shards: Callable[..., Path]):
    assert read_all(make_shards(COUNTS)) == (list(range(18)), Counter(), set())


def rewrite(path: Path, change: Callable[[tarfile.TarFile, tarfile.TarInfo, bytes], None]) -> None:
    """Copy a tar file member by member."""
    with tarfile.open(path) as source:
        members = [(info, source.extractfile(info).read()) for info in source]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as target:
        for info, content in members:
            change(target, info, content)


def rewrite_without(path: Path, *names: str) -> None:
    rewrite(path, lambda tar, info, data: None if info.name in names else tar.addfile(info, io.BytesIO(data)))


def put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def cut_in_member(path: Path) -> None:
    offset, _ = read_headers(path).samples[2][1]["png"]
    os.truncate(path, offset + 5)


def cut_between_members(path: Path) -> None:
    offset, size = read_headers(path).samples[2][1]["json"]  # the JSON comes first
    os.truncate(path, -(-(offset + size) // 512) * 512)


def cut_between_samples(path: Path) -> None:
    offset, size = read_headers(path).samples[2][1]["png"]
    os.truncate(path, -(-(offset + size) // 512) * 512)


def damage_header(path: Path) -> None:
    offset, _ = read_headers(path).samples[3][1]["json"]
    with path.open("r+b") as file:
        file.seek(offset - 512)
        file.write(b"\xff" * 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_html(path: Path) -> None:
    path.write_text("<html>gone</html>" * 1000)


def make_shorter(path: Path) -> None:
    rewrite(
        path, lambda tar, info, data: None if info.name.startswith("000010") else tar.addfile(info, io.BytesIO(data))
    )


def drop_a_json(path: Path) -> None:
    rewrite_without(path, "000007.json")


def drop_a_picture(path: Path) -> None:
    rewrite_without(path, "000007.png")


# Shard 1 holds samples 5 to 10. What is lost without an index beside it, with one, why, and what is named. (None: a
# rewritten tar file has no business with the old index.)
CORRUPTIONS = [
    (cut_in_member, range(7, 11), range(7, 11), shard_index.TRUNCATED, "00001.tar"),
    (cut_between_members, range(7, 11), range(7, 11), shard_index.TRUNCATED, "00001.tar"),
    (cut_between_samples, range(8, 11), range(8, 11), shard_index.TRUNCATED, "00001.tar"),
    (damage_header, range(8, 11), range(0), shard_index.DAMAGED, "00001.tar"),
    (empty, range(5, 11), range(5, 11), shard_index.EMPTY, "00001.tar"),
    (replace_by_html, range(5, 11), range(5, 11), shard_index.NO_TAR, "00001.tar"),
    (Path.unlink, range(5, 11), range(5, 11), shard_index.MISSING, "00001.tar"),
    (make_shorter, range(10, 11), None, shard_index.SHORT, "00001.tar"),
    (drop_a_json, range(7, 8), None, INCOMPLETE, "00001.tar[2]"),
    (drop_a_picture, range(7, 8), None, INCOMPLETE, "00001.tar[2]"),
]
WITHOUT_INDEX = [(corrupt, lost, False, reason, name) for corrupt, lost, _, reason, name in CORRUPTIONS]
WITH_INDEX = [(corrupt, lost, True, reason, name) for corrupt, _, lost, reason, name in CORRUPTIONS if lost is not None]


@pytest.mark.parametrize(("corrupt", "lost", "with_index", "reason", "name"), WITHOUT_INDEX + WITH_INDEX)
def test_losses_are_counted_and_named_exactly(
    make_shards: Callable[..., Path],
    corrupt: Callable[[Path], None],
    lost: range,
    with_index: bool,
    reason: str,
    name: str,
):
    folder = make_shards(COUNTS)
    corrupt(folder / "00001.tar")
    if not with_index:
        index_path(folder / "00001.tar").unlink()
    numbers, reasons, names = read_all(folder)
    assert numbers == [number for number in range(18) if number not in lost]
    assert reasons == ({reason: len(lost)} if lost else {})
    assert names == ({name} if lost else set())


def test_more_samples_than_the_manifest_says_are_not_read(make_shards: Callable[..., Path]):
    folder = make_shards(COUNTS)

    def append(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
        tar.addfile(info, io.BytesIO(data))
        if info.name == "000017.png":
            put(tar, "extra.json", b'{"number": 99}')
            put(tar, "extra.png", data)

    rewrite(folder / "00002.tar", append)
    numbers, reasons, _ = read_all(folder)
    assert len(numbers) == 18
    assert not reasons


class Payload:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_in_shards_never_run(tmp_path: Path, make_picture: Callable[..., bytes]):
    payload, trace = pickle.dumps(Payload(tmp_path / "trace")), tmp_path / "trace"
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for kind in ("pkl", "pyd", "pth", "pickle", "pt", "png", "json"):
            put(tar, f"a.{kind}", make_picture(3) if kind == "png" else payload)
        for kind in ("pkl", "pth"):
            put(tar, f"only_{kind}.{kind}", payload)
    shards = open_shards(tmp_path)
    reader = ShardReader(shards, {"json"})
    assert reader.read(0, 0) == {"png": make_picture(3), "json": payload}, "raw bytes of our own kinds, nothing else"
    for number in (1, 2):
        with pytest.raises(BadSample) as caught:
            reader.read(0, number)
        assert caught.value.reason == NO_PICTURE
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists(), "the payload works, so its silence above means something"


@pytest.mark.parametrize("key", ["../../etc/a", "/etc/passwd", "a\nb\x1b[31m", "x" * 90, "ü" * 20, "con"])
def test_hostile_keys_are_only_shown(tmp_path: Path, key: str):
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        put(tar, f"{key}.txt", b"no picture")
    with pytest.raises(BadSample) as caught:
        ShardReader(open_shards(folder)).read(0, 0)
    assert caught.value.name == f"{folder / '00000.tar'}[0]"
    assert caught.value.detail.isprintable()
    assert caught.value.detail.isascii()
    assert len(caught.value.detail) < len(str(folder)) + 300
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "shards"]


def test_huge_members_are_not_read(make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_MOST_BYTES", 60)
    reader = ShardReader(open_shards(make_shards(COUNTS)))
    with pytest.raises(BadSample) as caught:
        reader.read(0, 0)
    assert caught.value.reason == OVERSIZED


def test_a_pipe_in_place_of_a_shard_does_not_block(make_shards: Callable[..., Path]):
    folder = make_shards(COUNTS)
    (folder / "00001.tar").unlink()
    os.mkfifo(folder / "00001.tar")
    _, reasons, names = read_all(folder)
    assert reasons == {reading.UNREADABLE: 6}
    assert names == {"00001.tar"}


def test_few_files_stay_open_and_none_after_closing(make_shards: Callable[..., Path]):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    reader = ShardReader(open_shards(make_shards([2] * 12)), most_open=3)
    gc.collect()  # what other tests left open
    before = open_files()
    for shard in (*range(12), *range(12)):
        reader.read(shard, 1)
        assert open_files() <= before + 3
    reader.close()
    assert open_files() == before


def test_reader_travels_to_other_processes(make_shards: Callable[..., Path]):
    reader = ShardReader(open_shards(make_shards(COUNTS)), {"json"})
    first = reader.read(1, 2)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(1, 2) == first
    child = os.fork()
    if child == 0:
        os._exit(0 if reader.read(1, 2) == first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.read(1, 2) == first


@pytest.fixture
def masked(tmp_path: Path, make_picture: Callable[..., bytes]) -> Path:
    """A shard whose samples have a picture and a mask."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        put(tar, "1.jpg", make_picture(1))
        put(tar, "1.png", make_picture(2))
        put(tar, "1.mask.png", make_picture(3))
    return tmp_path


def test_several_pictures_in_a_sample_are_said(masked: Path, make_picture: Callable[..., bytes]):
    with pytest.warns(UserWarning, match="samples have png and jpg; `image_member` chooses, png is taken"):
        assert ShardReader(open_shards(masked)).read(0, 0) == {"png": make_picture(2)}


@pytest.mark.parametrize(("kind", "number"), [("jpg", 1), ("png", 2), ("mask.png", 3)])
def test_the_picture_is_the_member_that_was_chosen(
    masked: Path, make_picture: Callable[..., bytes], kind: str, number: int
):
    reader = ShardReader(open_shards(masked, needed=((kind,),)), {"json", "png"})
    first = next(iter(reader.read(0, 0).items()))
    assert first == (kind, make_picture(number))


class Storage:
    """`os.pread` that fails for some calls, or gives little at a time."""

    def __init__(self, failures: int = 0, most: int = 1 << 30, error: int = errno.ESTALE) -> None:
        self.failures, self.most, self.error, self.real = failures, most, error, os.pread

    def __call__(self, descriptor: int, size: int, offset: int) -> bytes:
        self.failures -= 1
        if self.failures >= 0:
            if not self.error:
                return b""
            raise OSError(self.error, os.strerror(self.error))
        return self.real(descriptor, min(size, self.most), offset)


@pytest.mark.parametrize(
    "storage",
    [Storage(3), Storage(3, error=errno.EIO), Storage(most=7), Storage(2, error=0)],
    ids=["stale", "broken", "short", "empty"],
)
def test_storage_that_fails_for_a_moment_loses_nothing(
    make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, storage: Storage
):
    folder = make_shards(COUNTS)
    expected = read_all(folder)
    monkeypatch.setattr(shard_index.time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "pread", storage)
    assert read_all(folder) == expected


def test_storage_that_keeps_failing_is_named_and_not_taken_for_the_end(
    make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    folder = make_shards([1, 1])
    monkeypatch.setattr(shard_index.time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "pread", Storage(4))  # all attempts of the first sample
    numbers, reasons, names = read_all(folder)
    assert (numbers, reasons, names) == ([1], {reading.UNREADABLE: 1}, {"00000.tar[0]"})

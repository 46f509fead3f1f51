"""Tar files: grouped as webdataset does, and never trusted."""

import errno
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.shards import index as shard_index
from data.shards.index import ShardIndex, index_path, load, read_headers, read_index, retried, write_index
from seecoder.weights.digests import file_sha256


def tar_of(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(path: Path, index: ShardIndex) -> list[tuple[str, dict[str, bytes]]]:
    data = path.read_bytes()
    return [
        (key, {kind: data[offset : offset + size] for kind, (offset, size) in members.items()})
        for key, members in index.samples
    ]


PAIRS = [(f"{number}.{kind}", f"{kind} {number}".encode() * 40) for number in range(6) for kind in ("png", "json")]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path: Path, format: int):
    long = "d/" * 60 + "n" * 120  # needs GNU's and PAX's ways of writing long names
    members = [
        *PAIRS,
        ("a/b.jpg", b"1"),
        ("a/b.output.png", b"2"),
        ("a/c.jpg", b"3"),
        ("README", b"no extension"),
        ("__meta__/a.json", b"webdataset's own"),
        ("UPPER.JPG", b"4"),
        ("../../etc/passwd.jpg", b"5"),
        *([(f"{long}.jpg", b"6")] if format != tarfile.USTAR_FORMAT else []),
    ]
    path = tar_of(tmp_path / "a.tar", members, format)
    with path.open("rb") as file:
        theirs = [
            (sample["__key__"], {kind: value for kind, value in sample.items() if not kind.startswith("__")})
            for sample in group_by_keys(tar_file_expander([{"url": "a.tar", "stream": file}]))
        ]
    assert contents(path, read_headers(path)) == theirs
    assert len(theirs) == 6 + 4 + (format != tarfile.USTAR_FORMAT)


def test_links_and_devices_leave_their_samples_without_the_member(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "" if kind == tarfile.CHRTYPE else "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("d.jpg"))
    kinds = {key: list(members) for key, members in read_headers(path).samples}
    assert kinds == {"a": ["jpg (link)"], "b": ["jpg (link)"], "c": ["jpg (special file)"], "d": ["jpg"]}


def test_samples_with_dotted_names_stay_where_they_lie(tmp_path: Path):
    names = ["a.jpg", "photo_v1.5_1.jpg", "b.jpg", "photo_v1.5_2.jpg", "c.jpg"]
    path = tar_of(tmp_path / "a.tar", [(name, b"x") for name in names])
    assert [key for key, _ in read_headers(path).samples] == [name.removesuffix(".jpg") for name in names]


def test_tar_files_that_were_joined_are_read_to_the_last(tmp_path: Path):
    parts = [tar_of(tmp_path / "x.tar", PAIRS[first : first + 4]).read_bytes() for first in (0, 4, 8)]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(parts))
    found = read_headers(path)
    whole = tar_of(tmp_path / "w.tar", PAIRS)
    assert contents(path, found) == contents(whole, read_headers(whole))
    assert not found.fault
    path.write_bytes(b"".join(parts)[:-9000])  # the last of them is cut
    assert read_headers(path).fault == shard_index.TRUNCATED
    path.write_bytes(b"".join(parts) + b"\0" * 512 + b"no header at all" * 40)
    assert read_headers(path) == ShardIndex(found.samples, shard_index.DAMAGED)


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        (["photo_v1.5_1.jpg", "photo_v1.5_2.jpg"], {"photo_v1.5_1": ["jpg"], "photo_v1.5_2": ["jpg"]}),
        (["22.05.jpg", "22.05.json", "23.05.jpg"], {"22.05": ["jpg", "json"], "23.05": ["jpg"]}),
        (["st.peter.jpg", "st.paul.jpg"], {"st.peter": ["jpg"], "st.paul": ["jpg"]}),
        (["d.1/a.b.2024.png"], {"d.1/a.b.2024": ["png"]}),
        (["1.jpg", "1.seg.png", "2.jpg", "2.seg.png"], {"1": ["jpg", "seg.png"], "2": ["jpg", "seg.png"]}),
        (["1.jpg", "1.0.png", "1.1.png"], {"1": ["jpg", "0.png", "1.png"]}),
        (
            ["1.in.jpg", "1.mask.png", "2.in.jpg", "2.mask.png"],
            {"1": ["in.jpg", "mask.png"], "2": ["in.jpg", "mask.png"]},
        ),
        (["1.a.txt", "1.moments.safetensors"], {"1": ["a.txt", "moments.safetensors"]}),
    ],
)
def test_dots_in_names_of_pictures_do_not_hide_them(tmp_path: Path, names: list[str], samples: dict[str, list[str]]):
    path = tar_of(tmp_path / "a.tar", [(name, b"x") for name in names])
    assert {key: list(members) for key, members in read_headers(path).samples} == samples


@pytest.mark.parametrize("kinds", [("jpg", "json"), ("jpg", "mask.png"), ("in.jpg", "mask.png"), ("json", "jpg")])
def test_members_of_a_sample_need_not_lie_side_by_side(tmp_path: Path, kinds: tuple[str, str]):
    path = tar_of(tmp_path / "a.tar", [(f"{key}.{kind}", kind.encode()) for kind in kinds for key in "123"])
    found = read_headers(path)
    assert [(key, list(members)) for key, members in found.samples] == [(key, list(kinds)) for key in "123"]
    assert [content for _, content in contents(path, found)] == [{kind: kind.encode() for kind in kinds}] * 3
    assert not found.passed


def test_a_name_that_stands_twice_gives_two_samples_and_is_said(tmp_path: Path):
    members = [("1.jpg", b"old"), ("1.json", b"o"), ("2.jpg", b"x"), ("1.json", b"n"), ("1.jpg", b"new")]
    path = tar_of(tmp_path / "a.tar", members)
    found = read_headers(path)
    assert contents(path, found) == [
        ("1", {"jpg": b"old", "json": b"o"}),
        ("2", {"jpg": b"x"}),
        ("1", {"json": b"n", "jpg": b"new"}),
    ]
    assert found.passed == {shard_index.DOUBLED: 4}


def test_members_of_no_sample_are_counted(tmp_path: Path):
    members = [("./._1.jpg", b"x"), ("__MACOSX/._1.jpg", b"x"), ("./1.jpg", b"x"), ("README", b"x")]
    found = read_headers(tar_of(tmp_path / "a.tar", members))
    assert [key for key, _ in found.samples] == ["./1"]
    assert found.passed == {"hidden file": 2, "no extension": 1}


def test_headers_are_read_again_only_when_the_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: (opened.append(self), real(self, *args))[1])
    path = tar_of(tmp_path / "a.tar", PAIRS)
    os.utime(path, (1, 1))
    assert read_headers(path) == load(path) == read_headers(path)
    assert opened == [path]
    tar_of(path, PAIRS[:4])
    assert len(read_headers(path).samples) == 2


class Storage:
    """Fails with an error for some times, then works."""

    def __init__(self, failures: int, error: int) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.error, "it failed")
        return "content"


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO])
def test_errors_that_pass_are_tried_again_after_a_repair(error: int, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(shard_index.time, "sleep", pauses.append)
    repairs: list[int] = []
    assert retried(Storage(3, error), lambda: repairs.append(1)) == "content"
    assert len(repairs) == len(pauses) == 3
    with pytest.raises(OSError, match="it failed"):
        retried(Storage(4, error))
    missing = Storage(1, errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        retried(missing)
    assert missing.calls == 1, "what is not there does not come by waiting"


def test_a_stale_handle_is_not_taken_for_the_end_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tar_of(tmp_path / "a.tar", PAIRS)
    storage, real = Storage(2, errno.ESTALE), Path.open
    monkeypatch.setattr(shard_index.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "open", lambda self, *args: real(self, *args) if storage() else None)
    assert len(read_headers(path).samples) == 6
    assert not read_headers(path).fault
    storage.calls, storage.failures = 0, 10
    assert read_headers(tar_of(tmp_path / "b.tar", PAIRS)) == ShardIndex([], shard_index.UNREADABLE)


@pytest.mark.parametrize("with_index", [False, True])
def test_cut_anywhere_every_sample_before_is_whole(tmp_path: Path, with_index: bool):
    whole = tar_of(tmp_path / "a.tar", PAIRS)
    expected, data = contents(whole, read_headers(whole)), whole.read_bytes()
    cut = tmp_path / "b.tar"
    if with_index:
        write_index(whole, read_headers(whole), file_sha256(whole))
        os.rename(index_path(whole), index_path(cut))
    ends = [max(offset + size for offset, size in members.values()) for _, members in read_headers(whole).samples]
    for size in range(0, len(data), 97):
        cut.write_bytes(data[:size])
        found = load(cut, required=["png", "json"])
        there = sum(end <= size for end in ends)
        assert contents(cut, found) == expected[:there], size
        assert found.fault or there == 6, size
    assert not read_headers(whole).fault


def test_cut_between_two_members_loses_the_incomplete_sample(tmp_path: Path):
    # Without an error from any library: the file just ends after a picture whose JSON is gone.
    path = tar_of(tmp_path / "a.tar", PAIRS)
    offset, size = read_headers(path).samples[3][1]["png"]
    path.write_bytes(path.read_bytes()[: -(-(offset + size) // 512) * 512])
    assert read_headers(path) == ShardIndex(read_headers(path).samples[:3], shard_index.TRUNCATED)
    assert len(read_headers(path, required=["png"]).samples) == 4


def damage(path: Path, sample: int) -> None:
    """Spoil the header of a sample's first member."""
    offset = read_headers(path).samples[sample][1]["png"][0]
    data = bytearray(path.read_bytes())
    data[offset - 512 : offset - 412] = b"\xff" * 100
    path.write_bytes(data)


def test_a_damaged_header_is_noticed_and_an_index_survives_it(tmp_path: Path):
    path = tar_of(tmp_path / "a.tar", PAIRS)
    whole = read_headers(path)
    write_index(path, whole, "0" * 64)
    damage(path, 4)
    assert read_headers(path) == ShardIndex(whole.samples[:4], shard_index.DAMAGED)
    assert load(path, sha256="0" * 64) == whole
    assert load(path, sha256="1" * 64).fault == shard_index.DAMAGED, "an index of another file must not be used"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", shard_index.EMPTY),
        (b"<html>not found</html>" * 100, shard_index.NO_TAR),
        (b"\x1f\x8b\x08" + b"x" * 600, shard_index.NO_TAR),
        (b"\0" * 10240, ""),
    ],
)
def test_what_is_no_shard(tmp_path: Path, content: bytes, fault: str):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert read_headers(path) == ShardIndex([], fault)
    assert read_headers(tmp_path / "none.tar").fault == shard_index.MISSING


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[100:108], block[124 : 124 + len(size)], block[156:157] = name, b"0000644\0", size, kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        header(b"a.png", b"00000000000\0") + header(b"b.png", b"\xff" * 11 + b"\x00"),  # minus 256: back to the start
        header(b"a.png", b"00000000000\0") + header(b"b.png", b"77777777777\0"),  # 8 GiB that are not there
        header(b"a.png", b"\x80" + b"\x7f" * 11),  # 2^95 bytes
        header(b"a.png", b"77777777777\0", b"x"),  # PAX header of 8 GiB
        header(b"a.png", b"77777777777\0", b"L") * 3,  # long names of 8 GiB
        header(b"a.png", b"00000000001\0", b"L") * 5000,  # long names of long names, deeper than the stack
        header(b"a.png", b"00000000000\0", b"S"),  # sparse file without its map
        header(b"a.png", b"00000000000\0") * 3,
    ],
)
def test_hostile_headers_end_the_shard_at_worst(tmp_path: Path, data: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    found = read_headers(path)
    assert len(found.samples) <= 3
    assert all(offset + size <= len(data) for _, members in found.samples for offset, size in members.values())


def test_mutated_tar_files_never_raise(tmp_path: Path):
    generator = random.Random(0)
    original = tar_of(tmp_path / "a.tar", PAIRS, tarfile.PAX_FORMAT).read_bytes()
    path = tmp_path / "b.tar"
    for _ in range(200):
        data = bytearray(original)
        for _ in range(generator.randint(1, 12)):  # mostly in headers, where it hurts
            position = generator.randrange(0, len(data), 512) + generator.randrange(265)
            data[min(position, len(data) - 1)] = generator.randrange(256)
        path.write_bytes(data)
        for _, members in read_headers(path).samples:
            assert all(0 <= offset <= offset + size <= len(data) for offset, size in members.values())


def test_kept_index_is_exact_and_bound_to_its_file(tmp_path: Path):
    path = tar_of(tmp_path / "a.tar", PAIRS)
    write_index(path, read_headers(path), file_sha256(path), {"bad": [["x", "y"]]})
    kept = read_index(path)
    assert kept is not None
    assert kept[0] == read_headers(path)
    assert kept[1] == {"sha256": file_sha256(path), "bytes": path.stat().st_size, "notes": {"bad": [["x", "y"]]}}
    longer = tar_of(path, [*PAIRS, ("9.png", b"more")] * 2)
    assert load(longer) == read_headers(longer), "a file that has grown is read afresh"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content | {"samples": [["a", {"png": [-1, 5]}]]},
        lambda content: content | {"samples": [["a", {"png": ["0", 5]}]]},
        lambda content: content | {"samples": [["a", {"png": [0]}]]},
        lambda content: content | {"samples": [["a", {"png": [0, float("inf")]}]]},
        lambda content: content | {"samples": [["a", {"png": [0.0, 5]}]]},
        lambda content: content | {"samples": [["a", {"png": [True, 5]}]]},
        lambda content: content | {"samples": [["a", {"png": [2**63, 5]}]]},
        lambda content: content | {"samples": [["a", {"png": [0, content["bytes"] + 1]}]]},
        lambda content: content | {"bytes": float("inf")},
        lambda content: content | {"bytes": str(content["bytes"])},
        lambda content: content | {"samples": [5]},
        lambda content: content | {"version": 2},
        lambda content: [content],
        lambda content: {},
    ],
)
def test_spoiled_index_is_not_used(tmp_path: Path, spoil: Callable[[dict], object]):
    path = tar_of(tmp_path / "a.tar", PAIRS)
    write_index(path, read_headers(path), file_sha256(path))
    index_path(path).write_text(json.dumps(spoil(json.loads(index_path(path).read_text()))))
    assert read_index(path) is None
    assert load(path) == read_headers(path)


@pytest.mark.parametrize("kinds", [("jpg.jpg",), ("png.webp", "png.json"), ("JPEG.jpg", "JPEG.txt")])
def test_a_second_extension_of_a_picture_belongs_to_its_name(tmp_path: Path, kinds: tuple[str, ...]):
    members = [(f"{number}.{kind}", b"x") for number in range(3) for kind in kinds]
    found = read_headers(tar_of(tmp_path / "a.tar", members)).samples
    assert [sorted(places) for _, places in found] == [sorted(kind.partition(".")[2] for kind in kinds)] * 3

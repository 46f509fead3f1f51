import errno
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import seecoder
from seecoder.weights import safetensors_files as weights
from seecoder.weights.pickles import read_pickle_allowed
from seecoder.weights.safetensors_files import WeightsError, read_header, read_safetensors, write_safetensors
from tests.fixtures.pickles import write_evil_pickle

ROOT = Path(__file__).resolve().parents[3]


def tensors_of_every_type() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype).removeprefix("torch."): (torch.rand(3, 5, generator=generator) * 100).to(dtype)
        for dtype in weights._DTYPES
    }
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "é": torch.ones(7).half()}
    return tensors


def small_file(path: Path) -> bytes:
    write_safetensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, {"format": "pt"})
    return path.read_bytes()


# Round trip and bytes.


def test_round_trip_of_every_type(tmp_path):
    tensors, metadata = tensors_of_every_type(), {"format": "pt", "note": 'ü "quoted"\n', "a": ""}
    write_safetensors(tmp_path / "w.safetensors", tensors, metadata)
    again, told = read_safetensors(tmp_path / "w.safetensors")
    assert told == metadata
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].shape == tensor.shape
        assert again[name].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist() if tensor.ndim else True
        assert torch.equal(again[name].double(), tensor.double())


def test_bytes_are_those_of_the_reference_writer(tmp_path):
    tensors = tensors_of_every_type()
    write_safetensors(tmp_path / "w", tensors, {"format": "pt"})
    assert (tmp_path / "w").read_bytes() == safetensors.torch.save(tensors, {"format": "pt"})
    write_safetensors(tmp_path / "w", tensors, {})
    assert (tmp_path / "w").read_bytes() == safetensors.torch.save(tensors)


@pytest.mark.heavy
def test_bytes_depend_on_no_order_and_no_process(tmp_path):
    tensors = {f"layer.{place}": torch.full((3,), float(place)) for place in range(20)}
    metadata = {f"key{place}": str(place) for place in range(20)}
    write_safetensors(tmp_path / "one", tensors, metadata)
    backwards = dict(reversed(tensors.items()))
    write_safetensors(tmp_path / "two", backwards, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torch; from seecoder.weights import write_safetensors\n"
        "tensors = {f'layer.{place}': torch.full((3,), float(place)) for place in range(20)}\n"
        f"write_safetensors({str(tmp_path / 'three')!r}, tensors, {{f'key{{n}}': str(n) for n in range(20)}})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


def test_views_and_shared_memory_are_written_in_full(tmp_path):
    base = torch.arange(24.0).view(4, 6).requires_grad_()
    tensors = {"whole": base, "turned": base.T, "part": base[1:3, ::2], "tied": base, "wide": base[:1].expand(5, 6)}
    write_safetensors(tmp_path / "w", tensors, {})
    again, _ = read_safetensors(tmp_path / "w")
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"a": [1, 2]}, {}, "`a` is list"),
        ({"a": torch.zeros(2, 2).to_sparse()}, {}, "sparse"),
        ({"a": torch.zeros(2, device="meta")}, {}, "on meta"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, {}, "complex128"),
        ({1: torch.zeros(2)}, {}, "cannot name"),
        ({"__metadata__": torch.zeros(2)}, {}, "cannot name"),
        ({}, {"a": 1}, "must be strings"),
        ({}, {1: "a"}, "must be strings"),
    ],
)
def test_what_the_format_has_no_place_for_is_refused(tmp_path, tensors, metadata, reason):
    with pytest.raises(TypeError, match=reason):
        write_safetensors(tmp_path / "w", tensors, metadata)
    assert not list(tmp_path.iterdir())


def test_read_tensors_survive_the_file(tmp_path):
    path = tmp_path / "w"
    small_file(path)
    tensors, _ = read_safetensors(path)
    write_safetensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(4)}, {})
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.unlink()
    assert tensors["b"].tolist() == [1, 1, 1, 1]


def test_a_header_says_what_reading_gives_without_the_tensors(tmp_path):
    tensors, metadata = tensors_of_every_type(), {"format": "pt", "a": "b"}
    write_safetensors(tmp_path / "w.safetensors", tensors, metadata)
    header, told = read_header(tmp_path / "w.safetensors")
    assert told == metadata
    assert header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert header[name] == (weights._DTYPES[tensor.dtype], tuple(tensor.shape))


# Pickles.


@pytest.mark.parametrize("kind", ["zip", "old", "2", "3", "4", "5"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w", "w.BIN"])
def test_pickles_are_refused_whatever_their_name(tmp_path, kind, name):
    witness = tmp_path / "witness"
    write_evil_pickle(tmp_path / name, witness, kind)
    with pytest.raises(WeightsError) as caught:
        read_safetensors(tmp_path / name)
    assert not witness.exists()
    assert "seecoder import --allow-pickle" in str(caught.value)
    assert "can run any code when it is read" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_names_of_pickles_are_refused_whatever_their_content(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    small_file(path)
    with pytest.raises(WeightsError, match="its name ends with"):
        read_safetensors(path)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x00030580])
def test_header_lengths_that_begin_like_a_pickle_are_read(tmp_path, length):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 1.5)
    (tmp_path / "w").write_bytes(data)
    assert read_safetensors(tmp_path / "w")[0]["a"].tolist() == [1.5]


# Damaged files.


def test_every_truncation_is_refused_in_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    data = small_file(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match="truncated, or no safetensors file") as caught:
            read_safetensors(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def with_header(header: object, body: bytes = bytes(64)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}" + bytes(100),
        struct.pack("<Q", 90_000_000) + b"{}" + bytes(100),
        with_header(b"{" * 1000),
        with_header(b"[" * 200_000),
        with_header(b'{"a":' * 100_000),
        with_header([1, 2]),
        with_header({"a": 1}),
        with_header({"a": {"dtype": "F32", "shape": [4]}}),
        with_header({"a": {**ENTRY, "data_offsets": []}}),
        with_header({"a": {**ENTRY, "data_offsets": [0, "16"]}}),
        with_header({"a": {**ENTRY, "data_offsets": [0, 10**30]}}),
        with_header({"a": {**ENTRY, "data_offsets": [16, 0]}}),
        with_header({"a": {**ENTRY, "shape": [5]}}, bytes(16)),
        with_header({"a": {**ENTRY, "shape": [-4]}}, bytes(16)),
        with_header({"a": {**ENTRY, "dtype": "F33"}}, bytes(16)),
        with_header({"a": ENTRY, "b": ENTRY}, bytes(16)),
        with_header({"a": ENTRY}, bytes(20)),
        with_header({"a": ENTRY, "__metadata__": {"x": 1}}, bytes(16)),
        with_header(b"\xff\xfe" * 20),
        b"<!DOCTYPE html>" + bytes(100),
        b"",
    ],
)
def test_damaged_headers_are_refused(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    for read in (read_safetensors, read_header):
        with pytest.raises(WeightsError) as caught:
            read(tmp_path / "w.safetensors")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_git_lfs_pointer_says_what_to_do(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(WeightsError, match=r"Git LFS pointer, not the weights\. Run `git lfs pull`"):
        read_safetensors(tmp_path / "w.safetensors")


def test_random_damage_gives_tensors_or_an_error(tmp_path):
    path, generator = tmp_path / "w", torch.Generator().manual_seed(0)
    data = small_file(path)
    loaded = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in torch.randint(len(data), (2,), generator=generator).tolist():
            changed[place] ^= int(torch.randint(1, 256, (), generator=generator))
        path.write_bytes(changed)
        try:
            read_safetensors(path)
            loaded += 1
        except WeightsError:
            pass
    assert 0 < loaded < 300


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_safetensors(tmp_path / "absent.safetensors")
    for read in (read_safetensors, read_pickle_allowed):
        with pytest.raises(WeightsError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(WeightsError, match="not a regular file"):
            read("/dev/zero")


# Complete or not at all.


def test_full_disk_in_mid_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    before = small_file(path)
    real_open = open

    class Disk:
        """A file on a disk that takes one write and is full at the second."""

        def __init__(self, *arguments):
            self.file, self.writes = real_open(*arguments), 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    monkeypatch.setattr(weights, "open", Disk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(path, {"a": torch.zeros(1000)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_errors_are_the_public_ones_and_survive_pickling():
    again = pickle.loads(pickle.dumps(WeightsError("gone")))
    assert isinstance(again, RuntimeError)
    assert str(again) == "gone"
    assert seecoder.WeightsError is WeightsError


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"GGUF\x03\0\0\0", "a GGUF file"), (b"<html>Not found", "a web page"), (b'{\n "_class_name"', "a JSON file")],
)
def test_files_of_other_kinds_are_called_what_they_are(tmp_path, content, kind):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=f"is {kind}, and only safetensors are read"):
        read_safetensors(tmp_path / "w.safetensors")

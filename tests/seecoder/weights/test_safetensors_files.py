import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import seecoder
from seecoder.weights import safetensors_files as weights
from seecoder.weights.safetensors_files import (
    WeightsError,
    load_strict,
    pack_metadata,
    read_pickle_allowed,
    read_safetensors,
    unpack_metadata,
    write_safetensors,
)

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


# Pickles (row 1).


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.write_text, (self.witness, "ran"))


def evil_file(path: Path, witness: Path, kind: str) -> None:
    if kind == "zip":
        torch.save({"state_dict": {"a": torch.zeros(2), "evil": Evil(witness)}}, path)
    elif kind == "old":
        torch.save({"a": Evil(witness)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Evil(witness), protocol=int(kind)))


@pytest.mark.parametrize("kind", ["zip", "old", "2", "3", "4", "5"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w", "w.BIN"])
def test_pickles_are_refused_whatever_their_name(tmp_path, kind, name):
    witness = tmp_path / "witness"
    evil_file(tmp_path / name, witness, kind)
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


@pytest.mark.parametrize("kind", ["zip", "old", "2", "4"])
def test_allowed_pickles_still_run_nothing(tmp_path, kind):
    witness = tmp_path / "witness"
    evil_file(tmp_path / "w.pth", witness, kind)
    with pytest.raises(WeightsError, match="restricted unpickler, and nothing less safe is tried"):
        read_pickle_allowed(tmp_path / "w.pth")
    assert not witness.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_allowed_pickles_are_unwrapped(tmp_path, wrap, zipped):
    state = {"a": torch.rand(2, 3), "b": nn.Parameter(torch.rand(4))}
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    again = read_pickle_allowed(tmp_path / "w.pth")
    assert {name: tensor.tolist() for name, tensor in again.items()} == {k: v.tolist() for k, v in state.items()}
    assert not any(tensor.requires_grad for tensor in again.values())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": torch.zeros(2), "step": 7}, "'step' is a int"),
        ({"a": {"b": torch.zeros(2)}}, "'a' is a dict"),
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({}, "holds a dict"),
        ({3: torch.zeros(2)}, "3 is a Tensor"),
        ({"a": torch.zeros(1).expand(10**9)}, "more than the file stores"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "more than dense tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*sparse.*")
def test_allowed_pickles_may_hold_nothing_but_tensors(tmp_path, content, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=reason):
        read_pickle_allowed(tmp_path / "w.pth")


def test_allowed_pickles_that_unpack_to_gigabytes_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for member in source.namelist():
            bomb.writestr(member, source.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed archive"):
        read_pickle_allowed(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"hello", b"\x80\x04\x95" + bytes(40)])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError):
        read_pickle_allowed(tmp_path / "w.pth")


# Damaged files.


def test_every_truncation_is_refused_in_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    data = small_file(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"truncated|not a valid") as caught:
            read_safetensors(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_truncated_file_says_how_much_is_missing(tmp_path):
    path = tmp_path / "w.safetensors"
    data = small_file(path)
    path.write_bytes(data[:-3])
    with pytest.raises(WeightsError, match=f"truncated: {len(data) - 3} of {len(data)} bytes"):
        read_safetensors(path)


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
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"",
    ],
)
def test_damaged_headers_are_refused(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_safetensors(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


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


# Strict loading (row 11).


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))


def test_fitting_weights_load():
    source, target = module(), module()
    nn.init.zeros_(target[0].weight)
    load_strict(target, source.state_dict(), source="w")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_missing_unexpected_and_misshaped_come_in_one_message_and_nothing_changes():
    target = module()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in target.state_dict().items()}
    del tensors["0.weight"], tensors["1.running_mean"]
    tensors |= {
        "extra.a": torch.zeros(1),
        "extra.b": torch.zeros(1),
        "extra.c": torch.zeros(1),
        "extra.d": torch.zeros(1),
    }
    tensors["2.weight"] = torch.zeros(5, 7)
    tensors["1.num_batches_tracked"] = torch.tensor(1.5)
    with pytest.raises(WeightsError) as caught:
        load_strict(target, tensors, source="a/b.safetensors", variant="the position-aware encoder")
    message = str(caught.value)
    assert "`a/b.safetensors` does not fit Sequential" in message
    assert "2 weights are missing (0.weight, 1.running_mean)" in message
    assert "4 are unexpected (extra.a, extra.b, extra.c, ...)" in message
    assert "2 do not fit (1.num_batches_tracked is () where () integer is needed, 2.weight is (5, 7) where" in message
    assert message.endswith("The file looks like the position-aware encoder.")
    assert "\n" not in message
    for name, tensor in before.items():
        assert torch.equal(target.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("0.bias"), r"1 weight is missing \(0.bias\)\.$"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"1 is unexpected \(more\)\.$"),
        (lambda tensors: tensors.update({"0.bias": torch.zeros(9)}), r"1 does not fit \(0.bias is \(9,\) where \(4,\)"),
    ],
)
def test_one_wrong_key(change, told):
    tensors = dict(module().state_dict())
    change(tensors)
    with pytest.raises(WeightsError, match=told):
        load_strict(module(), tensors, source="w")


def test_renamed_key_is_missing_and_unexpected():
    tensors = {name.replace("2.", "3."): tensor for name, tensor in module().state_dict().items()}
    with pytest.raises(WeightsError, match=r"2 weights are missing .*; 2 are unexpected"):
        load_strict(module(), tensors, source="w")


def test_parameters_keep_their_dtype_and_meta_modules_take_the_tensors():
    tensors = module().state_dict()
    half = module().half()
    load_strict(half, tensors, source="w")
    assert half[0].weight.dtype == torch.float16
    with torch.device("meta"):
        empty = module()
    load_strict(empty, tensors, source="w")
    assert torch.equal(empty[2].bias, tensors["2.bias"])
    assert not any(tensor.is_meta for tensor in empty.state_dict().values())


# Metadata.


def test_metadata_round_trip(tmp_path):
    config = {"backbone": "swin", "depths": [2, 2], "context_dim": 768, "pooled_dim": None, "dropout": 0.1, "é": True}
    write_safetensors(tmp_path / "w", {"a": torch.zeros(1)}, pack_metadata(config, trained_on="world"))
    told = unpack_metadata(read_safetensors(tmp_path / "w")[1], source="w")
    assert told == (config, weights.FORMAT_VERSION, seecoder.__version__, {"trained_on": "world"})


def test_metadata_do_not_depend_on_the_order_of_the_config():
    assert pack_metadata({"a": 1, "b": 2}) == pack_metadata({"b": 2, "a": 1})
    assert pack_metadata({})["format"] == "pt", "what other libraries look for"


def test_metadata_that_cannot_be_kept():
    with pytest.raises(TypeError, match="JSON"):
        pack_metadata({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="JSON"):
        pack_metadata({"a": float("nan")})
    with pytest.raises(TypeError, match="`step` is a int"):
        pack_metadata({}, step=3)  # pyright: ignore
    with pytest.raises(ValueError, match="`format` is taken"):
        pack_metadata({}, format="x")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seecoder.format": None}, "carries no seecoder metadata"),
        ({"seecoder.format_version": "2"}, "Update seecoder"),
        ({"seecoder.format_version": "one"}, "damaged metadata"),
        ({"seecoder.format_version": None}, "damaged metadata"),
        ({"seecoder.config": "{"}, "damaged metadata"),
        ({"seecoder.config": "[1]"}, "the configuration is a list"),
        ({"seecoder.config": "[" * 100_000}, "damaged metadata"),
        ({"seecoder.version": None}, "damaged metadata"),
    ],
)
def test_foreign_newer_and_damaged_metadata(changes, reason):
    metadata = {name: value for name, value in (pack_metadata({"a": 1}) | changes).items() if value is not None}
    with pytest.raises(WeightsError, match=reason) as caught:
        unpack_metadata(metadata, source="w.safetensors")
    assert "`w.safetensors`" in str(caught.value)


# Complete or not at all (row 8).


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


def test_errors_belong_to_the_public_module_and_survive_pickling():
    assert WeightsError.__module__ == "seecoder.weights"
    again = pickle.loads(pickle.dumps(WeightsError("gone")))
    assert isinstance(again, RuntimeError)
    assert str(again) == "gone"
    assert seecoder.WeightsError is WeightsError

"""A run's folder: checkpoints are found by name, trusted by their checksum, and the best one by its note."""

import json
from pathlib import Path

import pytest
import torch

from seecoder.export.run_folder import best_checkpoint, is_complete, list_checkpoints, marker_path, newest_checkpoint
from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError


def write(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    path.write_bytes(bytes(range(256)) * 4 + step.to_bytes(4, "big"))
    marker_path(path).write_text(file_sha256(path) + "\n")
    return path


def test_checkpoints_are_listed_from_the_newest_and_foreign_files_left_out(tmp_path: Path) -> None:
    for name in ("last.ckpt", "step-1.ckpt", "step-00000001.ckpt.partial", ".step-00000002.ckpt.ab.partial"):
        (tmp_path / name).touch()
    assert list_checkpoints(tmp_path) == []
    paths = {step: write(tmp_path, step) for step in (3, 100, 20)}
    assert list_checkpoints(tmp_path) == [(step, paths[step]) for step in (100, 20, 3)]


def test_the_newest_passes_over_those_that_are_not_whole_and_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third, fourth = (write(tmp_path, step) for step in (1, 2, 3, 20))
    assert newest_checkpoint(tmp_path) == fourth
    fourth.write_bytes(fourth.read_bytes()[:-7])  # torn
    marker_path(third).unlink()  # copied without its marker
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1  # a flipped bit
    second.write_bytes(content)
    assert [is_complete(path) for path in (first, second, third, fourth)] == [True, False, False, False]
    assert newest_checkpoint(tmp_path) == first
    assert caplog.text.count("not a complete checkpoint") == 3
    assert all(path.name in caplog.text for path in (second, third, fourth))


def test_a_copy_without_its_marker_is_whole_if_its_own_checksums_agree(tmp_path: Path) -> None:
    path = tmp_path / "step-00000007.ckpt"
    torch.save({"weights": torch.arange(1000.0), "step": 7}, path)
    content = path.read_bytes()
    assert newest_checkpoint(tmp_path) == path
    for damaged in (content[:-7], content[: len(content) // 2], content[:900] + b"\1" + content[901:], b""):
        path.write_bytes(damaged)
        assert newest_checkpoint(tmp_path) is None


def test_a_folder_without_whole_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    marker_path(write(tmp_path, 1)).unlink()
    assert newest_checkpoint(tmp_path) is None


def test_the_best_is_the_one_that_the_run_noted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"best\.json` does not exist"):
        best_checkpoint(tmp_path)
    note = tmp_path / "best.json"
    note.write_text(json.dumps({"step": 20, "checkpoint": "step-00000020.ckpt"}))
    with pytest.raises(FileNotFoundError, match=r"step-00000020\.ckpt`, which .* names, does not exist"):
        best_checkpoint(tmp_path)
    best, _ = write(tmp_path, 20), write(tmp_path, 30)
    assert best_checkpoint(tmp_path) == best


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_note_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(WeightsError, match=r"best\.json` is damaged"):
        best_checkpoint(tmp_path)

"""The trained part of a checkpoint is read; anything else is refused in one line."""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from seecoder.export.run_folder import marker_path
from seecoder.export.trained_part import TrainedEncoder, read_trained
from seecoder.weights.digests import file_sha256
from seecoder.weights.safetensors_files import WeightsError, write_safetensors
from tests.fixtures.pickles import State


@pytest.fixture
def trained() -> TrainedEncoder:
    tensors = {"decoder.a": torch.arange(6.0).reshape(2, 3), "query.b": torch.ones(2, dtype=torch.bfloat16)}
    return TrainedEncoder(
        config={"context_dim": 32, "image_mean": [0.0, 0.0, 0.0]},
        trainable=tensors,
        ema={key: value + 1 for key, value in tensors.items()},
        backbone_source="timm:something",
        backbone_sha256="ab" * 32,
    )


def write(path: Path, trained: TrainedEncoder, **changes: Any) -> Path:
    """Write a checkpoint as training does, with some entries changed."""
    entries = {
        "encoder_config": trained.config,
        "encoder_trainable": trained.trainable,
        "ema": trained.ema,
        "backbone_source": trained.backbone_source,
        "backbone_sha256": trained.backbone_sha256,
    }
    torch.save({"seecoder": {**entries, **changes}, "state_dict": {}, "epoch": 1}, path)
    return path


def test_the_trained_part_is_read(trained, tmp_path):
    found = read_trained(write(tmp_path / "a.ckpt", trained))
    assert found.config == trained.config
    assert (found.backbone_source, found.backbone_sha256) == (trained.backbone_source, trained.backbone_sha256)
    for ours, theirs in ((found.trainable, trained.trainable), (found.ema, trained.ema)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)


def test_no_average_is_none(trained, tmp_path):
    assert read_trained(write(tmp_path / "a.ckpt", trained, ema={})).ema is None


@pytest.mark.parametrize("package", ["torchao", "elsewhere"])
def test_state_of_torchaos_optimizers_is_no_obstacle_where_it_is_not_installed(trained, tmp_path, monkeypatch, package):
    module = types.ModuleType(f"{package}.not_installed")
    module.State = State
    with monkeypatch.context() as context:
        context.setitem(sys.modules, package, types.ModuleType(package))
        context.setitem(sys.modules, module.__name__, module)
        context.setattr(State, "__module__", module.__name__)
        write(tmp_path / "a.ckpt", trained, state=[State(torch.ones(2))])
    if package == "torchao":
        assert read_trained(tmp_path / "a.ckpt").trainable.keys() == trained.trainable.keys()
    else:
        with pytest.raises(WeightsError, match="cannot be read"):
            read_trained(tmp_path / "a.ckpt")


def test_a_run_with_torchaos_optimizer_is_read(settings, fit, tmp_path):
    pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):
        changes = {"run.max_steps": 1, "stage.init_args.optimizer": {"name": "adamw8bit_torchao"}}
        changes["stage.init_args.encoder.query_ffn_dim"] = 256  # smaller weights keep a state of 32 bits
        assert fit(settings(**changes)) == 0
    path = tmp_path / "run" / "step-00000001.ckpt"
    found = read_trained(path)
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # as where torchao was never imported
    try:
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path), "or the test shows nothing"
        again = read_trained(path)
    finally:
        torch.serialization.add_safe_globals(known)
    assert all(torch.equal(value, again.trainable[name]) for name, value in found.trainable.items())


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran",)


def test_code_in_a_checkpoint_is_not_run(trained, tmp_path, capfd):
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint of tensors"):
        read_trained(write(tmp_path / "a.ckpt", trained, hook=Evil()))
    assert "ran" not in capfd.readouterr().out


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt` does not exist"):
        read_trained(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.ckpt"):
        read_trained(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="not a checkpoint of an encoder"):
        read_trained(tmp_path / "other.ckpt")
    write_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    # torch reads safetensors from 2.12 on and fails before; neither is a checkpoint of an encoder.
    with pytest.raises(WeightsError, match=r"other\.safetensors` (cannot be read|has no `encoder_config`)"):
        read_trained(tmp_path / "other.safetensors")


def test_frozen_and_stray_tensors_are_refused(trained, tmp_path):
    with pytest.raises(WeightsError, match=r"1 backbone tensors \(first: backbone.x\)"):
        read_trained(write(tmp_path / "a.ckpt", trained, encoder_trainable={"backbone.x": torch.zeros(1)}, ema={}))
    with pytest.raises(WeightsError, match=r"averages 1 tensors that were not trained \(first: decoder.z\)"):
        read_trained(write(tmp_path / "b.ckpt", trained, ema={"decoder.z": torch.zeros(1)}))
    with pytest.raises(WeightsError, match="no trained tensors"):
        read_trained(write(tmp_path / "c.ckpt", trained, encoder_trainable={}, ema={}))


def test_of_a_run_the_newest_whole_checkpoint_is_read(trained, tmp_path):
    for step in (5, 20, 100):
        file = write(tmp_path / f"step-{step:08d}.ckpt", trained, backbone_source=f"step {step}")
        if step < 100:
            marker_path(file).write_text(file_sha256(file))
        else:  # the last one was cut before its checksum was written
            file.write_bytes(file.read_bytes()[:-100])
    assert read_trained(tmp_path).backbone_source == "step 20"
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        read_trained(tmp_path.parent)


def test_a_checkpoint_that_does_not_match_its_checksum_is_refused_by_name(trained, tmp_path):
    file = write(tmp_path / "step-00000005.ckpt", trained)
    marker_path(file).write_text("0" * 64)
    with pytest.raises(WeightsError, match="does not match its checksum"):
        read_trained(file)

"""What training leaves behind is read from either container, and nothing else is."""

import hashlib
import json
import os

import pytest
import torch

from seecoder.export.trained_part import TrainedEncoder, newest_checkpoint, read_trained, tensors_sha256, write_trained
from seecoder.weights.safetensors_files import WeightsError, write_safetensors


@pytest.fixture
def trained():
    tensors = {"decoder.a": torch.arange(6.0).reshape(2, 3), "query.b": torch.ones(2, dtype=torch.bfloat16)}
    return TrainedEncoder(
        config={"context_dim": 32, "image_mean": [0.0, 0.0, 0.0]},
        trainable=tensors,
        ema={key: value + 1 for key, value in tensors.items()},
        backbone_source="timm:something",
        backbone_sha256="ab" * 32,
        metadata={"step": "7"},
    )


def entries(trained):
    return {
        "encoder_config": trained.config,
        "encoder_trainable": trained.trainable,
        "ema": trained.ema,
        "backbone_source": trained.backbone_source,
        "backbone_sha256": trained.backbone_sha256,
        "step": "7",
    }


def assert_same(found, expected):
    assert found.config == expected.config
    assert (found.backbone_source, found.backbone_sha256) == (expected.backbone_source, expected.backbone_sha256)
    for ours, theirs in ((found.trainable, expected.trainable), (found.ema, expected.ema)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert found.metadata["step"] == "7"


def test_both_containers_round_trip(trained, tmp_path):
    write_trained(tmp_path / "a.safetensors", trained)
    assert_same(read_trained(tmp_path / "a.safetensors"), trained)
    torch.save(entries(trained), tmp_path / "a.pt")
    assert_same(read_trained(tmp_path / "a.pt"), trained)
    torch.save({"seecoder": entries(trained), "state_dict": {}, "epoch": 1}, tmp_path / "a.ckpt")
    assert_same(read_trained(tmp_path / "a.ckpt"), trained)


def test_no_average_is_none(trained, tmp_path):
    torch.save({**entries(trained), "ema": {}}, tmp_path / "a.pt")
    assert read_trained(tmp_path / "a.pt").ema is None


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran",)


def test_code_in_a_checkpoint_is_not_run(trained, tmp_path, capfd):
    torch.save({**entries(trained), "hook": Evil()}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint of tensors"):
        read_trained(tmp_path / "a.ckpt")
    assert "ran" not in capfd.readouterr().out


def test_wrong_files_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_trained(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.ckpt"):
        read_trained(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="not a checkpoint of an encoder"):
        read_trained(tmp_path / "other.ckpt")
    write_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="not a training checkpoint"):
        read_trained(tmp_path / "other.safetensors")


def test_frozen_and_stray_tensors_are_refused(trained, tmp_path):
    torch.save({**entries(trained), "encoder_trainable": {"backbone.x": torch.zeros(1)}, "ema": {}}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"1 backbone tensors \(first: backbone.x\)"):
        read_trained(tmp_path / "a.pt")
    torch.save({**entries(trained), "ema": {"decoder.z": torch.zeros(1)}}, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"averages 1 tensors that were not trained \(first: decoder.z\)"):
        read_trained(tmp_path / "b.pt")
    torch.save({**entries(trained), "encoder_trainable": {}, "ema": {}}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="no trained tensors"):
        read_trained(tmp_path / "c.pt")


def test_unknown_groups_in_safetensors_are_refused(trained, tmp_path):
    header = {"format": "seecoder.trained", "encoder_config": json.dumps({})}
    write_safetensors(tmp_path / "a.safetensors", {"optimizer.a": torch.zeros(1)}, header)
    with pytest.raises(WeightsError, match=r"unknown tensor `optimizer.a`"):
        read_trained(tmp_path / "a.safetensors")


def test_the_newest_whole_checkpoint_of_a_run_is_read(trained, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (5, 20, 100):
        file = folder / f"step-{step:08d}.ckpt"
        torch.save({"seecoder": {**entries(trained), "backbone_source": f"step {step}"}}, file)
        if step < 100:  # the last one was cut before its checksum was written
            file.with_name(file.name + ".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    assert newest_checkpoint(tmp_path / "run").name == "step-00000020.ckpt"
    assert read_trained(tmp_path / "run").backbone_source == "step 20"
    (folder / "step-00000020.ckpt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="does not match its checksum"):
        read_trained(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        newest_checkpoint(tmp_path / "empty")


def test_digest_depends_on_everything_but_the_order():
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.int64)}
    digest = tensors_sha256(tensors)
    assert digest == tensors_sha256(dict(reversed(tensors.items())))
    for changed in (
        {**tensors, "a": torch.arange(4.0) + 1e-6},
        {**tensors, "a": torch.arange(4.0).reshape(2, 2)},
        {**tensors, "a": torch.arange(4.0).double()},
        {"c": tensors["a"], "b": tensors["b"]},
    ):
        assert tensors_sha256(changed) != digest
    assert tensors_sha256({"a": torch.zeros(0)})
    strided = torch.arange(8.0)[::2]
    assert tensors_sha256({"a": strided}) == tensors_sha256({"a": strided.clone()})

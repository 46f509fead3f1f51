import os

import pytest
import torch

from seecoder.export.run_folder import is_complete, newest_checkpoint
from seecoder.weights.safetensors_files import WeightsError
from train.run.checkpoints import AtomicCheckpointIO

WHOLE = {"state_dict": {"weight": torch.ones(64)}, "optimizer_states": [{"state": {}}], "loops": {"fit_loop": {}}}
WHOLE["global_step"] = 3


@pytest.fixture
def writer() -> AtomicCheckpointIO:
    return AtomicCheckpointIO()


def save(writer, folder, step, value=1.0):
    path = folder / f"step-{step:08d}.ckpt"
    writer.save_checkpoint({"weights": torch.full((64,), value)}, path)
    return path


def test_round_trip(writer, tmp_path):
    path = tmp_path / "step-00000003.ckpt"
    writer.save_checkpoint(WHOLE, path)
    assert is_complete(path)
    assert torch.equal(writer.load_checkpoint(path)["state_dict"]["weight"], torch.ones(64))


@pytest.mark.parametrize("name", ["state_dict", "optimizer_states", "loops"])
def test_what_cannot_be_continued_exactly_is_refused_by_what_it_lacks(writer, tmp_path, name):
    for content in (WHOLE | {name: []}, {key: value for key, value in WHOLE.items() if key != name}):
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(WeightsError, match=rf"a\.ckpt cannot be continued: it has no {name}\."):
            writer.load_checkpoint(tmp_path / "a.ckpt")
    torch.save([1], tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="it has no state_dict, optimizer_states, loops"):
        writer.load_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_step_than_its_name_says_is_refused(writer, tmp_path):
    torch.save(WHOLE, tmp_path / "step-00000009.ckpt")
    with pytest.raises(WeightsError, match=r"step-00000009\.ckpt cannot be continued: it is of step 3\. Move it away"):
        writer.load_checkpoint(tmp_path / "step-00000009.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused_by_its_name(writer, tmp_path, value):
    bad, path = torch.tensor([1.0, value]), tmp_path / "step-00000003.ckpt"
    cases = {
        "state_dict.weight": {"state_dict": {"weight": bad}},
        "optimizer_states.0.state.0.exp_avg": {"optimizer_states": [{"state": {0: {"exp_avg": bad}}}]},
        "ema.averages.weight": {"ema": {"averages": {"weight": bad}}},
    }
    for name, change in cases.items():
        torch.save(WHOLE | change, path)
        with pytest.raises(WeightsError, match=rf"cannot be continued: {name} is not finite"):
            writer.load_checkpoint(path)
    torch.save(WHOLE | {"callbacks": {"EarlyStopping": {"best_score": torch.tensor(value)}}}, path)
    writer.load_checkpoint(path)


def test_a_full_disk_leaves_the_last_good_one_and_says_so(writer, tmp_path, monkeypatch):
    good = save(writer, tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    bad = save(writer, tmp_path, 2)
    monkeypatch.undo()
    assert "No space left" in str(writer.error)
    assert not bad.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [good.name, good.name + ".sha256"]
    assert newest_checkpoint(tmp_path) == good
    save(writer, tmp_path, 3)
    assert writer.error is None


def test_a_disk_that_fails_at_the_last_rename_leaves_no_marker(writer, tmp_path, monkeypatch):
    rename = os.replace

    def fails(source, target):
        if target.suffix == ".ckpt":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    save(writer, tmp_path, 1)
    assert "Input/output error" in str(writer.error)
    assert list(tmp_path.iterdir()) == []


def test_removing_takes_checkpoint_and_marker(writer, tmp_path):
    writer.remove_checkpoint(save(writer, tmp_path, 1))
    writer.remove_checkpoint(tmp_path / "step-00000001.ckpt")  # gone already
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing(writer, tmp_path, monkeypatch):
    monkeypatch.setattr("train.run.checkpoints._HashingFile.write", _fails_late)
    save(writer, tmp_path, 1)
    monkeypatch.undo()
    assert "No space left" in str(writer.error)
    assert list(tmp_path.iterdir()) == []


def _fails_late(self, data):
    if self.file.tell() > 300:
        self.error = OSError(28, "No space left on device")
        raise self.error
    return self.file.write(data)


def test_errors_that_are_not_the_disks_are_raised(writer, tmp_path):
    with pytest.raises(Exception, match="pickle"):
        writer.save_checkpoint({"weights": lambda: 0}, tmp_path / "step-00000001.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_pickled_code_is_not_run(writer, tmp_path):
    class Bad:
        def __reduce__(self):
            return os.system, ("touch /tmp/should-not-exist",)

    path = tmp_path / "step-00000001.ckpt"
    torch.save({"state": Bad()}, path)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        writer.load_checkpoint(path)

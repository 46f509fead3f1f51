import json

import pytest
import torch
from torch import nn

from train.run.guards import GradientGuard, Gradients, TrainingStopped, not_finite
from train.settings import GuardSettings


def weights(*gradients: float) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.ones(2)) for _ in gradients]
    for weight, value in zip(made, gradients, strict=True):
        weight.grad = torch.full((2,), value)
    return made


def test_clipping_scales_all_gradients_to_the_norm():
    made = weights(3.0, 4.0)
    norm = GradientGuard(GuardSettings()).check(Gradients(made), 0, clip_norm=1.0)
    assert float(norm) == pytest.approx(50**0.5)
    after = torch.cat([weight.grad for weight in made])
    assert float(after.norm()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(after / after.norm(), torch.tensor([3.0, 3, 4, 4]) / 50**0.5, atol=1e-5)


def test_small_gradients_are_left_alone():
    made = weights(0.1)
    GradientGuard(GuardSettings()).check(Gradients(made), 0, clip_norm=1.0)
    assert torch.equal(made[0].grad, torch.full((2,), 0.1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_neither_weights_nor_moments(bad, tmp_path):
    made = weights(1.0, 1.0)
    optimizer = torch.optim.AdamW(made, lr=0.1, weight_decay=0.1)
    guard = GradientGuard(GuardSettings())
    guard.folder = tmp_path
    guard.check(Gradients(made), 0, 1.0)
    optimizer.step()
    before = [weight.detach().clone() for weight in made]
    moments = [optimizer.state[weight]["exp_avg"].clone() for weight in made]
    made[1].grad = torch.tensor([1.0, bad])
    guard.remember({"keys": torch.tensor([[0, 17]])})
    guard.check(Gradients(made), 1, 1.0)
    optimizer.step()
    assert all(torch.equal(weight, old) for weight, old in zip(made, before, strict=True))
    states = [optimizer.state[weight]["exp_avg"] for weight in made]
    assert all(torch.equal(state, old) for state, old in zip(states, moments, strict=True))
    line = json.loads((tmp_path / "skipped_steps.jsonl").read_text())
    assert line["samples"] == [[0, 17]]
    assert guard.skipped == 1


def test_a_spike_is_skipped_against_the_running_mean():
    guard = GradientGuard(GuardSettings(max_norm_ratio=5))
    for step in range(3):
        guard.check(Gradients(weights(1.0)), step, None)
    spike = weights(20.0)
    guard.check(Gradients(spike), 3, None)
    assert spike[0].grad is None
    again = GradientGuard(GuardSettings(max_norm_ratio=5))
    again.load_state_dict(guard.state_dict())
    assert again.mean_norm == guard.mean_norm
    assert again.skipped == 1


def test_too_many_in_a_row_stop_the_run():
    guard = GradientGuard(GuardSettings(max_skipped_in_a_row=2))
    for step in range(2):
        guard.check(Gradients(weights(float("nan"))), step, None)
    guard.check(Gradients(weights(1.0)), 2, None)
    for step in range(3, 5):
        guard.check(Gradients(weights(float("nan"))), step, None)
    with pytest.raises(TrainingStopped, match="3 optimizer steps in a row"):
        guard.check(Gradients(weights(float("nan"))), 5, None)


def test_an_infinite_loss_with_finite_gradients_is_skipped():
    guard = GradientGuard(GuardSettings())
    made = weights(1.0)
    guard.remember({}, torch.tensor(float("inf")))
    guard.check(Gradients(made), 0, None)
    assert made[0].grad is None
    guard.remember({}, torch.tensor(2.0))
    guard.check(Gradients(weights(1.0)), 1, None)
    assert (guard.skipped, guard.skipped_in_a_row, guard.mean_loss) == (1, 0, 2.0)


def test_a_loss_far_above_its_mean_is_skipped_where_asked_for():
    for ratio, skipped in ((None, 0), (10.0, 1)):
        guard = GradientGuard(GuardSettings(max_loss_ratio=ratio))
        for loss in (1.0, 1.0, 50.0):
            guard.remember({}, torch.tensor(loss))
            guard.check(Gradients(weights(1.0)), 0, None)
        assert guard.skipped == skipped


def test_state_of_an_earlier_version_is_taken():
    guard = GradientGuard(GuardSettings())
    guard.load_state_dict({"skipped": 3, "skipped_in_a_row": 1, "mean_norm": 0.5})
    assert (guard.skipped, guard.mean_loss) == (3, 0.0)


def test_a_full_disk_costs_the_note_of_a_skipped_step_not_the_run(tmp_path, capsys):
    (tmp_path / "skipped_steps.jsonl").symlink_to("/dev/full")
    guard = GradientGuard(GuardSettings())
    guard.folder = tmp_path
    guard.remember({"keys": torch.tensor([[0, 7]])})
    guard.check(Gradients(weights(float("nan"))), 3, None)
    said = capsys.readouterr().out
    assert "NOT NOTED" in said
    assert '"samples": [[0, 7]]' in said, "the log has them in its place"
    guard.check(Gradients(weights(1.0)), 4, None)
    assert guard.skipped_in_a_row == 0


def test_tensors_that_are_not_finite_are_named():
    tree = {"a": {0: torch.ones(2), 1: {"b": torch.tensor([0.0, float("inf")])}}, "c": torch.ones(1, dtype=torch.int64)}
    assert not_finite(tree | {"d": 1, "e": torch.nn.Parameter(torch.tensor(float("nan")))}) == ["a.1.b", "e"]

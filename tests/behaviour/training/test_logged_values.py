"""What the log says, against values computed by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train.run.evaluation
import train.run.recorder
from train.run.metrics_file import read_metrics
from train.settings import OptimizerSettings
from train.sources.shard_data import _KeyedBatches
from train.stages.denoising import NUM_LEVELS
from train.stages.seecoder import SeeCoderStage

NONE_HELD_OUT = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False}


def logged(folder: Any) -> dict[str, dict[int, float]]:
    return {name: dict(values) for name, values in read_metrics(folder / "metrics.csv").items()}


@pytest.fixture
def levels(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loss by level as it would be logged, for samples of these timesteps and errors; all weigh 3 in the loss."""
    values = settings()["stage"]["init_args"]
    stage = SeeCoderStage(OptimizerSettings(), values["base"], values["encoder"], values["backbone_weights"])
    assert (NUM_LEVELS, stage.schedule.num_timesteps) == (4, 1000)

    def find(*batches: tuple[list[int], list[float]]) -> tuple[dict[int, float], list[float]]:
        losses = []
        for times, errors in batches:
            steps = torch.tensor(times)
            weights = torch.full((len(times),), 3.0)
            monkeypatch.setattr(stage, "draw_timesteps", lambda keys, steps=steps, weights=weights: (steps, weights))
            given = torch.tensor(errors)
            monkeypatch.setattr(stage, "errors", lambda *_, given=given: given)
            pixels = torch.zeros(len(times), 3, 32, 32, dtype=torch.uint8)
            losses.append(float(stage.loss({"pixels": pixels, "keys": torch.zeros(len(times), 2, dtype=torch.int64)})))
        records = {int(name.removeprefix("loss_level_")): record for name, record in stage.take_records().items()}
        found = {level: total / count for level, (total, count) in records.items()}
        return found, losses

    return find


@torch.no_grad()
@pytest.mark.parametrize(
    ("time", "level"), [(0, 1), (249, 1), (250, 2), (499, 2), (500, 3), (749, 3), (750, 4), (999, 4)]
)
def test_a_timestep_belongs_to_one_level_borders_included(levels: Any, time: int, level: int):
    assert levels(([time], [0.5]))[0] == {level: 0.5}


@torch.no_grad()
def test_loss_by_level_is_the_mean_of_its_samples_without_their_weights(levels: Any):
    errors = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    found, losses = levels(([0, 100, 249, 250, 750, 999], errors))
    assert found == pytest.approx({1: 7 / 3, 2: 8.0, 4: 24.0})
    assert losses == [pytest.approx(3 * 63 / 6)]
    found, _ = levels(([10, 20], [1.0, 3.0]), ([30, 600], [5.0, 7.0]), ([700], [9.0]))
    assert found == {1: (2.0 + 5.0) / 2, 3: (7.0 + 9.0) / 2}  # means of micro-batches


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that passes only while reading (3 s a micro-batch), in a loss (1 s) and in an evaluation (100 s)."""
    now = SimpleNamespace(seconds=1000.0)
    for module in (train.run.recorder, train.run.evaluation):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    read, loss, evaluate = _KeyedBatches.__iter__, SeeCoderStage.loss, SeeCoderStage.evaluate

    def slow_read(self: Any) -> Any:
        for batch in read(self):
            now.seconds += 3
            yield batch

    def slow_loss(self: Any, batch: Any) -> Any:
        now.seconds += 1
        return loss(self, batch)

    def slow_evaluate(self: Any) -> Any:
        now.seconds += 100
        return evaluate(self)

    monkeypatch.setattr(_KeyedBatches, "__iter__", slow_read)
    monkeypatch.setattr(SeeCoderStage, "loss", slow_loss)
    monkeypatch.setattr(SeeCoderStage, "evaluate", slow_evaluate)
    return now


@pytest.mark.heavy
@pytest.mark.parametrize("accumulate", [1, 3])
def test_speed_and_waiting_are_those_of_the_clock(settings, fit, clock, tmp_path, accumulate):
    """A micro-batch of 2 pictures takes 4 seconds, 3 of them to read; an evaluation does not count."""
    changes = {"run.accumulate": accumulate, "run.log_every": 2, "run.max_steps": 6, "run.evaluate_every": 1}
    assert fit(settings(**changes)) == 0
    found = logged(tmp_path / "run")
    assert set(found["images_per_second"]) == {2, 4, 6}
    assert set(found["images_per_second"].values()) == {0.5}
    assert set(found["data_wait"].values()) == {0.75}
    assert clock.seconds == 1000 + 6 * accumulate * 4 + 6 * 100


@pytest.mark.heavy
def test_speed_is_that_of_all_processes_and_counts_from_where_a_run_continues(settings, fit, clock, tmp_path):
    changes = {**NONE_HELD_OUT, "run.log_every": 4, "run.checkpoint_every": 3}
    assert fit(settings(**changes, **{"run.max_steps": 3})) == 0
    assert logged(tmp_path / "run")["images_per_second"] == {3: 0.5}  # the last step is always logged
    assert fit(settings(**changes, **{"run.max_steps": 8})) == 0
    assert logged(tmp_path / "run")["images_per_second"] == {3: 0.5, 4: 0.5, 8: 0.5}
    recorder = train.run.recorder.Recorder(tmp_path, every=1, batch_size=48)  # of all processes
    stage = SimpleNamespace(take_records=dict, guard=SimpleNamespace(skipped=0))
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, max_steps=9, loggers=[], world_size=1)
    trainer.train_dataloader, trainer.global_rank = None, 0
    recorder.on_start(trainer, stage)
    clock.seconds += 12
    recorder.waited = 3.0
    recorder.on_step(trainer, stage, 1)
    found = logged(tmp_path)
    assert (found["images_per_second"][1], found["data_wait"][1]) == (4.0, 0.25)


@pytest.mark.heavy
def test_rate_and_gradient_norm_are_those_that_the_step_had(settings, fit, monkeypatch, tmp_path):
    """Warm-up over two steps, then a cosine to a tenth: 1, cos 30°, cos 60°, ... of the way."""
    norms, clipped, rates = [], [], []
    check, step = SeeCoderStage.on_before_optimizer_step, torch.optim.AdamW.step

    def norm(stage: Any) -> float:
        weights = [weight for _, weight in stage.trained_parameters()]
        return math.sqrt(math.fsum(float(weight.grad.double().square().sum()) for weight in weights))

    def spy(self: Any, optimizer: Any) -> None:
        norms.append(norm(self))
        check(self, optimizer)
        clipped.append(norm(self))

    def stepped(self: Any, *arguments: Any, **options: Any) -> Any:
        result = step(self, *arguments, **options)  # the closure computes the gradients
        rates.append(self.param_groups[0]["lr"])
        return result

    monkeypatch.setattr(SeeCoderStage, "on_before_optimizer_step", spy)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "schedule": "cosine", "final_factor": 0.1, "clip_norm": 0.01}
    changes = {**NONE_HELD_OUT, "run.max_steps": 6, "run.accumulate": 2, "stage.init_args.optimizer": optimizer}
    assert fit(settings(**changes)) == 0
    expected = [5e-4, 1e-3 * (0.55 + 0.45 * math.sqrt(3) / 2), 7.75e-4, 5.5e-4, 3.25e-4]
    expected.append(1e-3 * (0.55 - 0.45 * math.sqrt(3) / 2))
    found = logged(tmp_path / "run")
    assert list(found["learning_rate"]) == list(found["gradient_norm"]) == [1, 2, 3, 4, 5, 6]
    assert list(found["learning_rate"].values()) == pytest.approx(expected, rel=1e-5)  # six digits are written
    assert rates == pytest.approx(expected, rel=1e-12)
    assert list(found["gradient_norm"].values()) == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.011
    assert clipped == pytest.approx([0.01] * 6, rel=1e-3)  # what the step took


@pytest.mark.heavy
def test_a_line_for_several_steps_has_the_mean_norm_and_the_last_rate(settings, fit, tmp_path):
    single, several = tmp_path / "single", tmp_path / "several"
    steady = {**NONE_HELD_OUT, "run.max_steps": 6}
    assert fit(settings(**steady, **{"run.folder": str(single)})) == 0
    assert fit(settings(**steady, **{"run.folder": str(several), "run.log_every": 3})) == 0
    one, other = logged(single), logged(several)
    for name in ("loss", "gradient_norm"):
        values = list(one[name].values())
        assert len(set(values)) == 6
        assert other[name] == pytest.approx({3: sum(values[:3]) / 3, 6: sum(values[3:]) / 3}, rel=1e-5)
    assert one["learning_rate"] == {1: 5e-4, 2: 1e-3, 3: 1e-3, 4: 1e-3, 5: 1e-3, 6: 1e-3}
    assert other["learning_rate"] == {3: 1e-3, 6: 1e-3}

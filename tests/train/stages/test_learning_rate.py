import math
from pathlib import Path

import pytest
import yaml

from train.settings import OptimizerSettings
from train.stages.learning_rate import learning_rate, turning_points

CONFIGS = Path(__file__).parents[3] / "configs"


def published(name: str) -> tuple[OptimizerSettings, int]:
    config = yaml.safe_load((CONFIGS / name).read_text())
    values = config["stage"]["init_args"]["optimizer"]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return OptimizerSettings(**values), config["run"]["max_steps"]


def test_published_plan():
    settings, max_steps = published("sd15.yaml")
    assert max_steps == 100_000
    rates = [learning_rate(step, max_steps, settings) for step in (0, 49_999, 50_000, 99_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12)


def test_published_position_aware_plan():
    settings, max_steps = published("sd15_position_aware.yaml")
    assert max_steps == 20_000
    assert [learning_rate(step, max_steps, settings) for step in (0, 19_999)] == [5e-5, 5e-5]


def test_warmup_rises_linearly_and_loses_no_step():
    settings = OptimizerSettings(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 10, settings) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_starts_late_and_ends_at_its_floor():
    settings = OptimizerSettings(lr=2.0, schedule="cosine", decay_start=0.5, final_factor=0.1)
    assert learning_rate(50, 100, settings) == 2.0
    assert learning_rate(75, 100, settings) == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert learning_rate(100, 100, settings) == pytest.approx(0.2)


def test_settings_of_the_chosen_schedule_act():
    cosine = OptimizerSettings(lr=1.0, schedule="cosine", decay_start=0.5, final_factor=0.1)
    assert [learning_rate(step, 10, cosine) for step in (5, 10)] == pytest.approx([1.0, 0.1])
    steps = OptimizerSettings(lr=1.0, schedule="steps", milestones=(5,))
    assert [learning_rate(step, 10, steps) for step in (4, 5)] == pytest.approx([1.0, 0.1])


def test_turning_points_are_where_the_rate_changes_and_within_the_run():
    settings = OptimizerSettings(lr=1e-4, warmup_steps=10, schedule="steps", milestones=(30, 200))
    assert turning_points(100, settings) == pytest.approx({0: 1e-5, 10: 1e-4, 30: 1e-5, 50: 1e-5, 99: 1e-5})

"""What the caller of a run is told."""

from types import SimpleNamespace

import torch

from seecoder.sampling.progress import Reporter
from seecoder.sampling.stages import Outcome

STAGES = [SimpleNamespace(name="small", steps=range(3)), SimpleNamespace(name="large", steps=range(1, 3))]
OUTCOME = Outcome(latents=torch.zeros(1, 4, 2, 2), x0=torch.ones(1, 4, 2, 2))


def test_steps_are_counted_over_all_stages() -> None:
    told = []
    reporter = Reporter(STAGES, told.append, None)
    for place, stage in enumerate(STAGES):
        for index in stage.steps:
            reporter.step(SimpleNamespace(stage=place, time=900.0 - index), OUTCOME)
    assert [(entry.stage, entry.step, entry.num_steps) for entry in told] == [
        ("small", 1, 5),
        ("small", 2, 5),
        ("small", 3, 5),
        ("large", 4, 5),
        ("large", 5, 5),
    ]
    assert (told[-1].timestep, told[-1].stage_index, told[-1].num_stages) == (898.0, 1, 2)
    assert torch.equal(told[0].latents, OUTCOME.latents)


def test_a_stage_that_ends_in_noise_shows_its_predicted_x0() -> None:
    told = []
    reporter = Reporter(STAGES, None, told.append)
    reporter.stage_end(0, OUTCOME, is_whole=False)
    reporter.stage_end(1, OUTCOME, is_whole=True)
    assert [(entry.stage, float(entry.latents.mean())) for entry in told] == [("small", 1.0), ("large", 0.0)]


def test_nobody_has_to_listen() -> None:
    reporter = Reporter(STAGES, None, None)
    reporter.step(SimpleNamespace(stage=0, time=900.0), OUTCOME)
    reporter.stage_end(0, OUTCOME, is_whole=True)

"""Editors in a run: applied in order before every whole step, and what they leave is what the scheduler steps."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from seecoder.sampling import sample
from seecoder.sampling.fields import EditedSample, Editor
from seecoder.sampling.recipe import StagesMethod


@dataclass(frozen=True)
class Affine(Editor):
    """Latents -> factor * latents + shift, noted in a list."""

    factor: float
    shift: float
    seen: list[int] = field(default_factory=list)

    def is_large(self, step):
        return False

    def apply(self, latents, step, evaluator):
        self.seen.append(step.index)
        return EditedSample(self.factor * latents + self.shift)


@dataclass(frozen=True)
class Edited(StagesMethod):
    """One plain stage with editors."""

    editors: tuple[Editor, ...]

    def plan(self, run, recipe):
        stage = recipe.base_stage(run, run.size, "edited")
        return [replace(stage, begin=lambda run, before: run.first_start(run.size, self.editors))]


def sampled(scheduler, editors) -> torch.Tensor:
    return sample(
        lambda latents, timestep, context: torch.zeros_like(latents),
        scheduler,
        latent_shape=(1, 4, 4, 4),
        native_size=(4, 4),
        num_inference_steps=3,
        context=torch.zeros((1, 2, 8), dtype=torch.float64),
        latents=torch.ones((1, 4, 4, 4), dtype=torch.float64),
        method=Edited(editors),
    )


def test_editors_act_in_order_before_each_step(make_scheduler) -> None:
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(3)
    expected = torch.ones((1, 4, 4, 4), dtype=torch.float64)
    for timestep in scheduler.timesteps:
        edited = 2.0 * (expected + 1.0)
        expected = scheduler.step(torch.zeros_like(edited), timestep, edited).prev_sample
    torch.testing.assert_close(sampled(make_scheduler("ddim"), (Affine(1.0, 1.0), Affine(2.0, 0.0))), expected)


@pytest.mark.parametrize(("name", "indices"), [("ddim", [0, 1, 2]), ("heun", [0, 2, 4])])
def test_half_steps_are_left_alone(name, indices, make_scheduler) -> None:
    editor = Affine(1.0, 0.0)
    sampled(make_scheduler(name), (editor,))
    assert editor.seen == indices


def test_an_editor_has_to_say_what_it_does() -> None:
    with pytest.raises(TypeError, match="apply"):
        Editor()

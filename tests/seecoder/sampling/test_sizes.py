"""The size that is asked for is the size that comes."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from seecoder.sampling import DemoFusion, RectifiedHR, sample
from seecoder.sampling.recipe import StagesMethod
from seecoder.sampling.sizes import resized

SIZES = [(height, width) for height in range(8, 41, 3) for width in range(8, 49, 5)]
CASCADES = [
    *(DemoFusion(num_phases=count) for count in (None, 2, 3, 4, 7)),
    *(RectifiedHR(switch_at=fractions) for fractions in ((0.8,), (0.8, 0.9), (0.7, 0.8, 0.9))),
]


@pytest.mark.parametrize("method", CASCADES, ids=repr)
def test_the_last_stage_has_the_size_that_was_asked_for(method) -> None:
    """Whatever the aspect: a scale that is one rounding error below 1 is not 1."""
    for native in ((8, 8), (16, 16), (64, 64)):
        cell = native[0] // 8
        for height, width in SIZES:
            size = (height * cell + cell // 2, width * cell)
            assert method.sizes(size, native)[-1] == size


def test_panoramas_end_at_the_size_that_was_asked_for() -> None:
    for size in ((235, 361), (244, 347), (292, 242)):
        assert DemoFusion().sizes(size, (64, 64), is_panorama=True)[-1] == size


@dataclass(frozen=True)
class Forgetful(StagesMethod):
    """A method whose only stage is the first of a cascade."""

    starts_whole: ClassVar[bool] = True

    def plan(self, run, recipe):
        return [recipe.base_stage(run, run.native_size, "base")]


def test_a_method_that_ends_at_another_size_is_refused(make_scheduler, make_denoiser, context) -> None:
    denoiser = make_denoiser()
    with pytest.raises(ValueError, match="last stage makes 8x8 cells, not the 16x16 that were asked for"):
        sample(
            denoiser,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=Forgetful(),
        )
    assert not denoiser.calls


def test_what_has_the_size_is_not_touched() -> None:
    latents = torch.randn((1, 4, 3, 5))
    assert resized(latents, (3, 5), mode="bicubic") is latents
    assert resized(latents, [6, 10], mode="bicubic").shape == (1, 4, 6, 10)

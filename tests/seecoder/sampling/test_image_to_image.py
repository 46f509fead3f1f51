"""Where a run begins that redraws a picture, and what a mask keeps of it at every step and size."""

import pytest
import torch

from seecoder.sampling import DemoFusion, sample
from seecoder.sampling.image_to_image import StartImage, masks_by_size, steps_left
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stepper import Stepper


def stepper_of(scheduler, steps=10) -> Stepper:
    return Stepper(scheduler, steps, eta=0.0, randomness=Randomness(None, 1), device=torch.device("cpu"))


def image(strength) -> StartImage:
    return StartImage(lambda size: torch.zeros(1, 4, *size), strength)


def test_strengths_leave_as_many_steps_as_in_diffusers() -> None:
    assert [steps_left(50, strength) for strength in (1.0, 0.8, 0.58, 0.02)] == [50, 40, 28, 1]
    with pytest.raises(ValueError, match=r"`strength`=0.01 of 50 steps must leave at least one step"):
        steps_left(50, 0.01)


@pytest.mark.parametrize(("name", "first"), [("ddim", 7), ("euler", 7), ("heun", 14), ("dpm2", 14)])
def test_a_run_begins_with_a_whole_step(name, first, make_scheduler) -> None:
    assert image(0.3).first_step(stepper_of(make_scheduler(name))) == first
    assert image(1.0).first_step(stepper_of(make_scheduler(name))) == 0


def test_a_scheduler_that_cannot_start_inside_is_replaced(make_scheduler) -> None:
    x0 = torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    found = [
        sample(
            lambda latents, timestep, context: 0.1 * latents,
            scheduler,
            latent_shape=(1, 4, 6, 6),
            native_size=(6, 6),
            context=torch.zeros(1, 2, 3),
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            start_image=StartImage(lambda size: x0, strength=0.5),
        )
        for scheduler in (make_scheduler("pndm", steps_offset=1), make_scheduler("ddim"))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("strength", [0.0, 1.1, "half"])
def test_strengths_out_of_range_are_refused(strength) -> None:
    with pytest.raises(ValueError, match=r"`strength`=.* of StartImage\(\) must be a number above 0 and up to 1"):
        image(strength)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm"])
def test_a_network_that_knows_the_picture_gives_it_back(name, make_scheduler) -> None:
    """DDIM as it comes with Stable Diffusion ends at the first noise level, 0.03, and not at none."""
    x0 = torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = sample(
        lambda latents, timestep, context: x0.expand_as(latents),
        make_scheduler(name, prediction_type="sample"),
        latent_shape=(1, 4, 6, 6),
        native_size=(6, 6),
        num_inference_steps=4,
        context=torch.zeros((1, 2, 8), dtype=torch.float64),
        start_image=StartImage(lambda size: x0, 0.5),
    )
    torch.testing.assert_close(found, x0, atol=0.15 if name == "ddim" else 1e-4, rtol=0)


def test_kept_cells_have_the_noise_of_their_step(make_scheduler) -> None:
    stepper = stepper_of(make_scheduler("ddim"), 4)
    x0, noise, drawn = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    kept = StartImage(lambda size: x0, mask=lambda size: mask)
    found, clean = kept.put_back(drawn, stepper, 2, noise), kept.put_back(drawn, stepper, 4, noise)
    assert torch.equal(found[..., 0, 0], drawn[..., 0, 0])
    assert torch.equal(found[..., 1, :], stepper.add_noise(x0, noise, 2)[..., 1, :])
    assert torch.equal(clean[..., 1, :], x0[..., 1, :])
    assert torch.equal(kept.put_back(drawn, stepper, 2), clean)


def test_a_cell_has_the_value_of_its_first_pixel_and_small_stages_lose_no_stroke() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4, 6] = 1.0
    masks = masks_by_size(mask, (8, 8))
    assert masks((8, 8)).nonzero().tolist() == [[0, 0, 2, 3]]
    assert masks((2, 2)).nonzero().tolist() == [[0, 0, 0, 0]]
    mask[..., 4, 6], mask[..., 5, 6] = 0.0, 1.0
    assert not masks_by_size(mask, (8, 8))((8, 8)).any()


@pytest.mark.parametrize("method", [None, DemoFusion()])
def test_a_run_ends_with_the_kept_cells(method, make_scheduler, make_denoiser, context) -> None:
    x0 = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    mask[..., :7] = 1.0
    seen = []

    def latents_of(size: tuple[int, int]) -> torch.Tensor:
        seen.append(size)
        return x0 if size == (16, 16) else torch.nn.functional.adaptive_avg_pool2d(x0, size)

    found = sample(
        make_denoiser(),
        make_scheduler("ddim"),
        latent_shape=(1, 4, 16, 16),
        native_size=(8, 8),
        num_inference_steps=5,
        context=context[:1],
        start_image=StartImage(latents_of, 1.0, masks_by_size(mask, (16, 16))),
        method=method,
    )
    assert torch.equal(found[..., 7:], x0[..., 7:])
    assert (found - x0)[..., :7].abs().min() > 0
    assert set(seen) == ({(16, 16)} if method is None else {(8, 8), (16, 16)})

import itertools
import logging

import pytest
import torch

from seecoder.sampling import MultiDiffusion, SyncDiffusion, sample
from seecoder.sampling.conditions import Conditions
from seecoder.sampling.fields import Evaluator
from seecoder.sampling.methods.perceptual import default_loss, pyramid_distance
from seecoder.sampling.methods.syncdiffusion import Synchronise, middle_view, sync_weight_at
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stages import Run
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper
from seecoder.sampling.views import windows

CPU = torch.device("cpu")


@pytest.fixture
def decoder() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, 12, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.PixelShuffle(2),
        torch.nn.Conv2d(3, 3, 3, padding=1),
    )
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return net.double().requires_grad_(False)


@pytest.fixture
def parts(make_scheduler, make_denoiser, context, decoder):
    """An editor over latents of 8 x 20 (or another width) in windows of 8 x 8, and what it needs."""

    def build(settings: SyncDiffusion, guidance_scale: float = 2.0, batch: int = 1, width: int = 20):
        stepper = Stepper(
            make_scheduler("ddim"), 10, eta=0.0, randomness=Randomness(torch.Generator(), batch), device=CPU
        )
        run = Run(
            latent_shape=(batch, 4, 8, width),
            native_size=(8, 8),
            stepper=stepper,
            randomness=Randomness(torch.Generator(), batch),
            guidance_scale=guidance_scale,
            guidance_rescale=0.0,
            device=CPU,
            dtype=torch.float64,
            decoder=decoder,
        )
        conditions = Conditions(context[:batch], torch.zeros_like(context[:1]), None, ())
        evaluator = Evaluator(make_denoiser(), stepper, conditions, view_batch_size=3)
        path = settings.windows.paths(run, (8, width), {})[0]
        step = Step(2, 10, stepper.timesteps[2], stepper.times[2], 1000, (8, width), (8, 8))
        return settings.editor(run, path), evaluator, step

    return build


def loss_of(editor: Synchronise, evaluator: Evaluator, cuts, items, references, step) -> torch.Tensor:
    return editor.loss(editor.predicted_images(cuts, items, step, evaluator), references)


SETTINGS = SyncDiffusion(stride=4, sync_threshold=1.0, loss=pyramid_distance)


def test_check_20_a_weight_of_zero_is_multidiffusion(make_scheduler, make_denoiser, context, decoder) -> None:
    def run(method):
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 8, 20),
            native_size=(8, 8),
            num_inference_steps=5,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=method,
            decoder=decoder,
        )

    synchronised = SyncDiffusion(stride=4, sync_weight=0.0, sync_threshold=1.0, loss=pyramid_distance)
    assert torch.equal(run(synchronised), run(MultiDiffusion(stride=4)))
    moved = SyncDiffusion(stride=4, sync_weight=20.0, sync_threshold=1.0, loss=pyramid_distance)
    assert not torch.allclose(run(moved), run(MultiDiffusion(stride=4)), rtol=1e-3)


def test_check_20_identical_windows_have_no_loss_and_no_gradient(parts) -> None:
    editor, evaluator, step = parts(SETTINGS)
    tile = torch.randn((1, 4, 8, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = tile.repeat(1, 1, 1, 5)
    edited = editor.apply(latents, step, evaluator)
    assert torch.allclose(edited.latents, latents, atol=1e-12)
    assert all(float(offset.abs().max()) < 1e-12 for offset in edited.offsets.values())


def test_check_20_the_gradient_is_that_of_finite_differences(parts) -> None:
    """Through guidance, both branches of the network, the decoder and the loss, in float64."""
    editor, evaluator, step = parts(SETTINGS)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 4, 8, 20), generator=generator, dtype=torch.float64)
    views = windows((8, 20), (8, 8), (4, 4))
    item = (0, views[0])
    references = editor.predicted_images(views[2].gather(latents), [(0, views[2])], step, evaluator)
    gradient = editor.gradients(latents, [item], references, step, evaluator)[0]
    cut = views[0].gather(latents)
    for _ in range(8):
        direction = torch.randn(cut.shape, generator=generator, dtype=torch.float64)
        small = 1e-5
        difference = loss_of(editor, evaluator, cut + small * direction, [item], references, step)
        difference = difference - loss_of(editor, evaluator, cut - small * direction, [item], references, step)
        slope = float(difference.sum() / (2 * small))
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_check_20_the_loss_falls_for_small_weights(parts) -> None:
    editor, evaluator, step = parts(SETTINGS)
    latents = torch.randn((1, 4, 8, 20), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = windows((8, 20), (8, 8), (4, 4))
    items = [(0, view) for view in views if view != views[len(views) // 2]]
    anchor = editor._references(latents, [(0, views[len(views) // 2])], step, evaluator)
    gradients = editor.gradients(latents, items, anchor.expand(1, -1, -1, -1), step, evaluator)
    cuts = torch.cat([view.gather(latents) for _, view in items])
    losses = [
        loss_of(editor, evaluator, cuts - weight * gradients, items, anchor, step) for weight in (0.0, 0.1, 0.3, 1.0)
    ]
    for before, after in itertools.pairwise(losses):
        assert (after < before).all()


def test_check_20_batches_and_micro_batches_do_not_matter(
    make_scheduler, make_denoiser, context, decoder, seeds, relative
) -> None:
    def run(rows, generators, view_batch_size):
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(len(rows), 4, 8, 20),
            native_size=(8, 8),
            num_inference_steps=4,
            context=rows,
            negative_context=torch.zeros_like(rows),
            guidance_scale=2.0,
            generator=generators,
            method=SETTINGS,
            decoder=decoder,
            view_batch_size=view_batch_size,
        )

    together = run(context[:2], seeds(1, 2), 16)
    assert relative(run(context[1:2], seeds(2), 3), together[1:]) < 1e-6


@pytest.mark.parametrize(
    ("width", "stride", "closed_loop", "anchor", "left"),
    [
        (24, 4, True, "middle", 8),
        (24, 2, True, "middle", 8),
        (16, 8, True, "middle", 8),  # both windows are as near to the middle; the later one
        (24, 4, True, "first", 0),
        (24, 4, True, -1, 20),  # around the border
        (20, 4, False, "middle", 8),
        (20, 4, False, 0, 0),
        (8, 4, False, "middle", 0),  # one window, which is its own anchor
    ],
)
def test_check_21_a_closed_loop_has_all_its_windows_and_leaves_the_anchor_alone(
    width, stride, closed_loop, anchor, left, parts
) -> None:
    """Under a loss that pulls at the anchor, too, so that it stays only because it is left out."""
    settings = SyncDiffusion(
        stride=stride,
        closed_loop=closed_loop,
        sync_threshold=1.0,
        anchor=anchor,
        loss=lambda pictures, references: (pictures - 2.0 * references).square().sum(dim=(1, 2, 3)),
    )
    count = width // stride if closed_loop else (width - 8) // stride + 1
    assert len(settings.windows.views((8, 8), (8, width))) == count
    editor, evaluator, step = parts(settings, batch=2, width=width)
    latents = torch.randn((2, 4, 8, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edited = editor.apply(latents, step, evaluator)
    assert edited.cut_from is latents
    assert len(edited.offsets) == 2 * count
    still = [(picture, view.left) for (picture, view), offset in edited.offsets.items() if not offset.any()]
    assert sorted(still) == [(0, left), (1, left)]


def test_the_middle_of_a_loop_is_the_middle_of_the_picture() -> None:
    views = windows((8, 24), (8, 8), (4, 4), wrap=True)
    assert views[len(views) // 2].left == 12  # the released choice, which is not the middle on a loop
    assert middle_view(views, (8, 24)).left == 8


def test_the_windows_are_denoised_where_they_were_moved_to(parts) -> None:
    editor, evaluator, step = parts(SETTINGS)
    latents = torch.randn((1, 4, 8, 20), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edited = editor.apply(latents, step, evaluator)
    evaluator.denoiser.calls.clear()
    evaluator.fields(edited, step, [editor.path], editor.guidance.branches(step))
    seen = torch.cat([inputs[: len(inputs) // 2] for inputs, _ in evaluator.denoiser.calls])
    expected = [view.gather(latents[0]) + edited.offsets[0, view] for view in windows((8, 20), (8, 8), (4, 4))]
    assert torch.allclose(seen, torch.stack(expected), atol=1e-12)


def test_the_weight_decays_and_synchronisation_ends(parts) -> None:
    assert [sync_weight_at(20.0, 0.5, index) for index in range(3)] == [20.0, 10.0, 5.0]
    settings = SyncDiffusion(stride=4, sync_threshold=0.4, sync_every=2, loss=pyramid_distance)
    editor, _, step = parts(settings)
    active = [
        index
        for index in range(10)
        if editor.is_large(Step(index, 10, step.timestep, step.time, 1000, (8, 20), (8, 8)))
    ]
    assert active == [1, 3]


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ({"sync_threshold": 0.04}, True),
        ({"sync_threshold": 0.3, "sync_every": 4}, True),
        ({"sync_threshold": 0.1}, False),
        ({"sync_threshold": 0.3, "sync_every": 3}, False),
        ({"sync_threshold": 0.0}, False),  # asked for
        ({"sync_threshold": 0.04, "sync_weight": 0.0}, False),
    ],
)
def test_too_few_steps_to_synchronise_are_said(settings, is_said, parts, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        parts(SyncDiffusion(stride=4, loss=pyramid_distance, **settings))
    assert ("synchronises none of the 10 steps" in caplog.text) == is_said


def test_the_fallback_loss_is_zero_for_the_same_picture_and_sees_colour_and_texture() -> None:
    picture = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    assert pyramid_distance(picture, picture).tolist() == [0.0, 0.0]
    tinted = picture + torch.tensor([0.3, 0.0, -0.3], dtype=torch.float64).view(1, 3, 1, 1)
    smooth = picture.mean(dim=(2, 3), keepdim=True).expand_as(picture)
    assert (pyramid_distance(tinted, picture) > 0.01).all()
    assert (pyramid_distance(smooth, picture) > 0.01).all()


def test_the_fallback_is_said(caplog, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert default_loss(CPU) is pyramid_distance
    assert "LPIPS is not available" in caplog.text


def test_what_is_missing_is_said(make_scheduler, make_denoiser, context) -> None:
    with pytest.raises(ValueError, match="compares decoded windows"):
        sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 8, 20),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            method=SyncDiffusion(),
        )

import pytest
import torch

from seecoder.sampling import RectifiedHR, ScaleCrafter, sample
from seecoder.sampling.guidance import NEGATIVE, POSITIVE, classifier_free
from seecoder.sampling.methods.scalecrafter import layer_settings
from seecoder.sampling.methods.scalecrafter.layer_settings import per_axis
from seecoder.sampling.methods.scalecrafter.redilation import ReDilation, progressive_factor
from seecoder.sampling.methods.scalecrafter.scalecrafter import DAMPING, NoiseDamped, noise_damped
from seecoder.sampling.step import Step


def test_check_16_progressive_dilation_falls_from_four_to_two() -> None:
    factors = [progressive_factor(4.0, index, 35) for index in range(50)]
    assert factors == [4.0] * 9 + [3.0] * 9 + [2.0] * 17 + [1.0] * 15


def test_progressive_dilation_never_exceeds_its_factor() -> None:
    assert progressive_factor(1.5, 0, 35) == 1.5
    assert progressive_factor(1.0, 0, 35) == 1.0


def run(method, make_scheduler, unet, denoiser, context, size=(32, 32), scale=3.0, **options):
    return sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(1, 4, *size),
        native_size=(16, 16),
        num_inference_steps=4,
        context=context[:1],
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(0),
        method=method,
        unet=unet,
        **({"negative_context": torch.zeros_like(context[:1])} | options),
    )


def test_check_19_damping_with_the_dilated_network_is_ordinary_guidance(
    make_scheduler, make_unet, denoiser_of, context, relative
) -> None:
    unet = make_unet()
    dilation = {"level.1": 2.0, "level.2": 2.0}
    ordinary = ScaleCrafter(dilation=dilation, dilate_tau=1.0, damp_tau=0.0)
    damped = ScaleCrafter(dilation=dilation, dilate_tau=1.0, damping=dilation, damp_tau=1.0)
    plain_base = ScaleCrafter(dilation=dilation, dilate_tau=1.0, damping={}, damp_tau=1.0)
    expected = run(ordinary, make_scheduler, unet, denoiser_of(unet), context)
    assert relative(run(damped, make_scheduler, unet, denoiser_of(unet), context), expected) < 1e-9
    assert relative(run(plain_base, make_scheduler, unet, denoiser_of(unet), context), expected) > 1e-3


def test_check_19_the_formula_and_its_value_at_scale_one() -> None:
    base, negative, positive = torch.randn((3, 1, 4, 8, 8), dtype=torch.float64)
    assert torch.allclose(noise_damped(base, negative, positive, 1.0), base + positive - negative)
    assert torch.allclose(noise_damped(negative, negative, positive, 3.0), classifier_free(negative, positive, 3.0))


WEAKER = {"mid": 2.0}
STRONGER = {"level.1": 2.0, "level.2": 2.0}
ALWAYS_DAMPED = ScaleCrafter(dilation=STRONGER, dilate_tau=1.0, damping=WEAKER, damp_tau=1.0, progressive=False)


def by_hand(scale, scheduler, unet, context, noise) -> torch.Tensor:
    """Eq. 7 in a loop that knows neither branches nor paths."""
    scheduler.set_timesteps(4)
    latents = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        step = Step(index, 4, timestep, float(timestep), 1000, (32, 32), (16, 16))

        def predict(factors, told, step=step, latents=latents):
            with ReDilation(unet, per_axis(factors), 4).active(step, (32, 32)):
                return unet(latents, step.timestep, encoder_hidden_states=told).sample

        nothing = torch.zeros_like(context[:1])
        ground = predict(WEAKER, nothing)
        direction = predict(STRONGER, context[:1]) - predict(STRONGER, nothing)
        latents = scheduler.step(ground + scale * direction, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("scale", [1.0 + 1e-9, 3.0, 0.0])
def test_check_19_damped_steps_are_those_of_the_formula(
    scale, make_scheduler, make_unet, denoiser_of, context, relative
) -> None:
    """Down to w = 1 from above, where they tend to base(x, nothing) + dilated(x, y) - dilated(x, nothing)."""
    unet, rows = make_unet(), []
    noise = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actual = run(ALWAYS_DAMPED, make_scheduler, unet, denoiser_of(unet, rows), context, scale=scale)
    assert sum(rows) == 4 * 3
    limit = 1.0 if abs(scale - 1.0) < 1e-6 else scale
    assert relative(actual, by_hand(limit, make_scheduler("ddim"), unet, context, noise)) < 1e-6


def test_check_19_a_scale_of_exactly_one_is_no_guidance_and_not_the_limit_of_the_formula(
    make_scheduler, make_unet, denoiser_of, context, relative
) -> None:
    """As everywhere, a scale of 1 asks for the conditional prediction alone: one row a step, no negative context.

    The limit from above stands on the weaker network and is another picture, so that damping ends with a jump.
    """
    unet, rows = make_unet(), []
    undamped = ScaleCrafter(dilation=STRONGER, dilate_tau=1.0, damp_tau=0.0)
    expected = run(undamped, make_scheduler, unet, denoiser_of(unet), context, scale=1.0)
    options = {"scale": 1.0, "negative_context": None}
    actual = run(ALWAYS_DAMPED, make_scheduler, unet, denoiser_of(unet, rows), context, **options)
    assert sum(rows) == 4
    assert torch.equal(actual, expected)
    above = run(ALWAYS_DAMPED, make_scheduler, unet, denoiser_of(unet), context, scale=1.0 + 1e-9)
    assert relative(above, actual) > 1e-2


def test_check_19_three_branches_while_damping_and_two_after(make_scheduler, make_unet, denoiser_of, context) -> None:
    unet, rows = make_unet(), []
    method = ScaleCrafter(
        dilation={"level.2": 2.0}, dilate_tau=1.0, damping={"mid": 2.0}, damp_tau=0.5, progressive=False
    )
    run(method, make_scheduler, unet, denoiser_of(unet, rows), context)
    assert sum(rows) == 2 * 3 + 2 * 2
    step = Step(0, 4, torch.tensor(981), 981.0, 1000, (32, 32), (16, 16))
    assert set(NoiseDamped(3.0, until=2).branches(step)) == {DAMPING, NEGATIVE, POSITIVE}


def test_native_sizes_are_left_alone(make_scheduler, make_unet, denoiser_of, context) -> None:
    unet = make_unet()
    crafted = run(ScaleCrafter(), make_scheduler, unet, denoiser_of(unet), context, size=(16, 16))
    assert torch.equal(crafted, run(None, make_scheduler, unet, denoiser_of(unet), context, size=(16, 16)))


def test_an_interrupted_run_gives_the_network_back(make_scheduler, make_unet, denoiser_of, context) -> None:
    unet = make_unet()
    latents = torch.randn((1, 4, 16, 16), dtype=torch.float64)
    before = unet(latents, 500, encoder_hidden_states=context[:1]).sample

    def failing(*arguments, **conditions):
        denoiser_of(unet)(*arguments, **conditions)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ScaleCrafter(disperse=["mid"]), make_scheduler, unet, failing, context)
    assert torch.equal(unet(latents, 500, encoder_hidden_states=context[:1]).sample, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilation": {"level.1": 2.0}, "disperse": "level.2"}, "`disperse` names 'level.2', of which no layer is dil"),
        ({"dilation": {"level.1": 2.0, "mid": 1.0}, "disperse": ("level.1", "mid")}, "`disperse` names 'mid'"),
        ({"damping": {"mid": 1.5}}, "`damping` has no effect .* Set `damp_tau`"),
        ({"damping": {}}, "`damping` has no effect"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, message, make_scheduler, make_unet, denoiser_of, context):
    unet = make_unet()
    with pytest.raises(ValueError, match=message):
        run(ScaleCrafter(**settings), make_scheduler, unet, denoiser_of(unet), context)


def test_an_effect_at_the_size_of_the_result_is_one(
    make_scheduler, make_unet, denoiser_of, context, monkeypatch
) -> None:
    """On the way to 4x there is a stage at 2x, for which nobody has published damping, or a factor for `up.1`."""
    monkeypatch.setattr(layer_settings, "published_network", lambda unet: "sdxl")
    unet, reached = make_unet(), []
    sample(
        denoiser_of(unet),
        make_scheduler("ddim"),
        latent_shape=(1, 4, 32, 32),
        native_size=(8, 8),
        num_inference_steps=4,
        context=context[:1],
        negative_context=context[1:2],
        guidance_scale=2.0,
        method=[
            ScaleCrafter(damping={"mid": 2.0}, disperse="up.1"),
            RectifiedHR(switch_at=(0.25, 0.5), resize_in="latents"),
        ],
        unet=unet,
        on_stage=lambda stage: reached.append(stage.latents.shape[-1]),
    )
    assert reached == [8, 16, 32]


def test_one_pattern_is_a_list_of_one(make_scheduler, make_unet, denoiser_of, context) -> None:
    unet = make_unet()
    first, second, plain = (
        run(ScaleCrafter(disperse=disperse), make_scheduler, unet, denoiser_of(unet), context)
        for disperse in ("mid", ["mid"], ())
    )
    assert torch.equal(first, second)
    assert not torch.allclose(first, plain, rtol=1e-3)


def test_settings_that_make_no_sense_are_refused(make_scheduler, make_unet, denoiser_of, context) -> None:
    unet = make_unet()
    with pytest.raises(ValueError, match="matches no convolution"):
        run(ScaleCrafter(dilation={"down.3": 2.0}), make_scheduler, unet, denoiser_of(unet), context)
    with pytest.raises(ValueError, match="changes layers of the network"):
        run(ScaleCrafter(), make_scheduler, None, denoiser_of(unet), context)


@pytest.mark.parametrize("named", [["level.2"], ["mid", "up.0"]])
def test_the_weaker_network_is_dispersed_where_the_dilated_one_is(
    named, make_scheduler, make_unet, denoiser_of, context, relative
) -> None:
    """With the same factors both are one network and damped guidance is ordinary guidance, under any pattern."""
    unet = make_unet()

    def crafted(disperse=(), **damped) -> torch.Tensor:
        method = ScaleCrafter(dilation=STRONGER, dilate_tau=1.0, disperse=disperse, disperse_tau=0.5, **damped)
        return run(method, make_scheduler, unet, denoiser_of(unet), context)

    expected = crafted(named, damp_tau=0.0)
    assert relative(crafted(named, damping=STRONGER, damp_tau=1.0), expected) < 1e-9
    assert relative(crafted(damp_tau=0.0), expected) > 1e-3

"""What the pipeline hands to the sampling engine, and that it has its networks back whatever happens."""

import copy

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from seecoder import SeeCoderPipeline
from seecoder.sampling import HiDiffusion, MultiDiffusion, ScaleCrafter, SyncDiffusion
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.views import windows


@pytest.fixture
def pipe(parts):
    pipeline = SeeCoderPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [None, MultiDiffusion(stride=4)], ids=["frame", "windows"])
@torch.no_grad()
def test_one_step_of_rescaled_guidance_by_hand(parts, pipe, picture, method):
    """In float64; in windows the deviation is that of the whole field: each picture's one, not each window's."""
    context = torch.cat([pipe.encode_context(picture), 3 * pipe.encode_context(1 - picture)]).double()
    noise = noise_of(2, 4, 8, 12).double() * torch.linspace(0.5, 2.0, 12)  # windows of different deviation
    unet = copy.deepcopy(pipe.unet).double()
    pipe = SeeCoderPipeline(**{**parts, "unet": unet, "encoder": None})
    pipe.set_progress_bar_config(disable=True)
    settings = {"context": context, "latents": noise, "height": 16, "width": 24, "method": method}
    settings |= {"num_inference_steps": 1, "guidance_scale": 4.0, "output_type": "latent"}

    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(1)
    timestep = scheduler.timesteps[0]
    fields = []
    for told in (torch.zeros_like(context), context):
        total, count = torch.zeros_like(noise), torch.zeros_like(noise)
        for view in windows((8, 12), (8, 8 if method else 12), (4, 4)):
            output = unet(view.gather(noise), timestep, encoder_hidden_states=told).sample
            view.scatter_add(total, output)
            view.scatter_add(count, torch.ones_like(output))
        fields.append(total / count)
    guided = fields[0] + 4.0 * (fields[1] - fields[0])
    for share in (0.0, 0.7):
        expected = scheduler.step(rescale_noise_cfg(guided, fields[1], share), timestep, noise).prev_sample
        torch.testing.assert_close(pipe(**settings, guidance_rescale=share).images, expected, atol=1e-9, rtol=0)


@pytest.mark.heavy
def test_a_controlnet_goes_around_a_closed_loop(parts, picture, tiny_controlnet):
    """Noise and control picture rolled by one window, and the next window as the anchor: the same panorama, rolled."""
    pipe = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipe.set_progress_bar_config(disable=True)
    context, noise = pipe.encode_context(picture), noise_of(1, 4, 8, 24)
    control = torch.rand((3, 16, 48), generator=torch.Generator().manual_seed(1))

    def panorama(cells, anchor, control_cells):
        method = SyncDiffusion(
            stride=4, closed_loop=True, anchor=anchor, sync_threshold=1.0, loss=pyramid_distance, sync_weight=1.0
        )
        return pipe(
            context=context,
            latents=noise.roll(cells, -1),
            control_image=control.roll(2 * control_cells, -1),
            height=16,
            width=48,
            method=method,
            num_inference_steps=2,
            output_type="latent",
        ).images.roll(-cells, -1)

    expected = panorama(0, 0, 0)
    torch.testing.assert_close(panorama(4, 1, 4), expected, atol=1e-4, rtol=1e-4)
    assert (panorama(4, 1, 0) - expected).abs().max() > 1e-2


def anatomy(network):
    """Every module by name, itself and all that it has: settings, hooks, children, weights and their bits."""

    def of(value):
        if isinstance(value, dict):
            return [(key, of(entry)) for key, entry in value.items()]
        if isinstance(value, torch.Tensor):
            return id(value), value.data_ptr(), value.detach().numpy().tobytes()
        return list(value) if isinstance(value, list) else value

    return [(name, id(module), of(vars(module))) for name, module in network.named_modules()]


CRAFTED = ScaleCrafter(dilation={"level.1": 2.5}, damping={"mid": 1.5}, damp_tau=0.7, disperse=["mid"])


@pytest.mark.parametrize(
    ("place", "error"), [("callback", RuntimeError), ("callback", KeyboardInterrupt), ("network", KeyboardInterrupt)]
)
@pytest.mark.parametrize("method", [CRAFTED, HiDiffusion(shrink_tau=1.0)], ids=lambda method: type(method).__name__)
def test_an_interrupted_run_gives_the_network_back(pipe, picture, method, place, error):
    settings = {"height": 36, "width": 44, "method": method, "num_inference_steps": 3, "output_type": "latent"}
    settings |= {"context": pipe.encode_context(picture), "latents": noise_of(1, 4, 18, 22)}
    uninterrupted, calls = pipe(**settings).images, []
    shown = anatomy(pipe.unet)

    def interrupt(*given):
        calls.append(anatomy(pipe.unet))
        if len(calls) == 2:
            raise error("enough")

    middle = pipe.unet.mid_block.resnets[0]
    handle = middle.register_forward_pre_hook(interrupt) if place == "network" else None
    before = anatomy(pipe.unet)
    with pytest.raises(error, match="enough"):
        pipe(**settings, callback_on_step_end=interrupt if place == "callback" else None)
    assert anatomy(pipe.unet) == before
    assert (calls[1] != before) == (place == "network"), "in the network it is changed, and between steps it is not"
    if handle is not None:
        handle.remove()
    assert anatomy(pipe.unet) == shown
    assert torch.equal(pipe(**settings).images, uninterrupted)

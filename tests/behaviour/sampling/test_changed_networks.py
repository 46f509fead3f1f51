"""Methods that change layers, on networks that something else has changed: as on the plain network, or refused."""

import copy

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from seecoder import SeeCoderPipeline
from seecoder.sampling import HiDiffusion, ScaleCrafter, SyncDiffusion
from tests.fixtures.pipelines import build_lora, build_scheduler, build_unet, build_vae

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler and peft, on their own behalf
METHODS = {
    "hidiffusion": HiDiffusion(),
    "scalecrafter": ScaleCrafter(dilation={"level.0": 2.0, "level.1": 1.5}, dilate_tau=1.0, damp_tau=0.0),
    "dispersion": ScaleCrafter(
        dilation={"level.1": 1.7}, dilate_tau=1.0, damp_tau=0.0, disperse="level.1", disperse_tau=1.0
    ),
}
SYNCHRONISED = SyncDiffusion(sync_threshold=1.0)  # at every step
LINEAR = ("attn2.to_k", "attn1.to_q")
CONVOLUTIONS = (*LINEAR, "downsamplers.0.conv", "upsamplers.0.conv", "conv1", "conv2")


def pipeline(unet=None):
    pipe = SeeCoderPipeline(build_vae(), unet or build_unet(), build_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, method=None, side=32, **options):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1, 6, 32, generator=generator)
    given = {"num_inference_steps": 2, "output_type": "latent", "method": method, "generator": generator}
    return pipe(context=context, height=side, width=side, **given, **options).images


def loaded(pipe, endings):
    pipe.load_lora_weights(build_lora(pipe.unet, endings, size=0.2))
    return pipe


def offload_layers(pipe):
    """What `enable_sequential_cpu_offload` does, which needs an accelerator: weights are away between the calls."""
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module) or name in pipe._exclude_from_cpu_offload:
            continue
        for layer in part.modules():
            own = bool(list(layer.parameters(recurse=False)))
            if own or layer is part:
                add_hook_to_module(layer, AlignDevicesHook("cpu", offload=own, place_submodules=False))
    assert next(pipe.unet.parameters()).is_meta


@pytest.fixture(scope="module")
def plain():
    """The latents of the unchanged network by method, and without one."""
    made = {name: latents(pipeline(), method) for name, method in METHODS.items()}
    return {**made, None: latents(pipeline())}


@pytest.mark.parametrize("endings", [LINEAR, CONVOLUTIONS], ids=["linear", "convolutions"])
@pytest.mark.parametrize("name", METHODS)
def test_a_lora_is_seen_as_if_it_were_merged(name, endings, plain) -> None:
    pipe = loaded(pipeline(), endings)
    got = latents(pipe, METHODS[name])
    assert (got - plain[name]).abs().max() > 1e-2
    pipe.fuse_lora()
    torch.testing.assert_close(latents(pipe, METHODS[name]), got, atol=1e-4, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(latents(pipe, METHODS[name]), got, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_offloaded_layers_are_changed_when_they_arrive(name, plain) -> None:
    sequential, grouped = pipeline(), pipeline()
    offload_layers(sequential)
    torch.testing.assert_close(latents(sequential, METHODS[name]), plain[name])
    grouped.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    torch.testing.assert_close(latents(grouped, METHODS[name]), plain[name])


@pytest.mark.parametrize("name", METHODS)
def test_networks_of_another_memory_format_and_calls_in_inference_mode_give_the_same(name, plain) -> None:
    unet = build_unet().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(latents(pipeline(unet), METHODS[name]), plain[name], atol=1e-5, rtol=0)


@pytest.mark.heavy
def test_synchronised_windows_take_their_gradients_in_inference_mode_too() -> None:
    pipe = pipeline()
    wanted = latents(pipe, SYNCHRONISED)
    with torch.inference_mode():
        torch.testing.assert_close(latents(pipe, SYNCHRONISED), wanted)


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["whole", "in place", "blocks"])
def test_compiled_networks_do_not_forget_the_method(way, plain) -> None:
    """Compiled code does not look at hooks that come later; the steps of a method run uncompiled."""
    pipe = pipeline(copy.deepcopy(build_unet()))
    if way == "whole":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    elif way == "in place":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet.compile_repeated_blocks(backend="eager")
    torch.testing.assert_close(latents(pipe), plain[None], atol=1e-5, rtol=0)
    for name, method in METHODS.items():
        torch.testing.assert_close(latents(pipe, method), plain[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(latents(pipe), plain[None], atol=1e-5, rtol=0)


class Quantised(torch.nn.Conv2d):
    """As the quantised layers of several libraries: unpacks its weight when it is called."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = torch.quantize_per_tensor(self.weight, 0.02, 0, torch.qint8)
        return self._conv_forward(inputs, weight, self.bias)

    def _conv_forward(self, inputs, weight, bias):
        return super()._conv_forward(inputs, weight.dequantize(), bias)


@pytest.mark.parametrize("name", METHODS)
def test_quantised_layers_are_changed_like_plain_ones(name) -> None:
    unet, rounded = build_unet(), build_unet()
    torch.ao.quantization.quantize_dynamic(unet, {torch.nn.Linear}, inplace=True)
    torch.ao.quantization.quantize_dynamic(rounded, {torch.nn.Linear}, inplace=True)
    for layer in unet.modules():
        if type(layer) is torch.nn.Conv2d and layer.kernel_size == (3, 3):
            layer.__class__ = Quantised
    for layer in rounded.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.weight.data = torch.quantize_per_tensor(layer.weight.data, 0.02, 0, torch.qint8).dequantize()
    wanted = latents(pipeline(rounded), METHODS[name])
    torch.testing.assert_close(latents(pipeline(unet), METHODS[name]), wanted, atol=1e-5, rtol=0)


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_whole_pipelines_are_offloaded_by_diffusers_own_calls(way, parts, picture, tiny_controlnet) -> None:
    """Pictures to pictures, with a method that decodes between its steps and a ControlNet: the same as all at hand."""

    def made(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "method": SYNCHRONISED, "output_type": "pt", "generator": generator}
        return pipe(picture, 16, 32, control_image=[picture] * 2, **options).images

    networks = {name: copy.deepcopy(part) for name, part in parts.items()}
    pipe = SeeCoderPipeline(**networks, controlnet=[copy.deepcopy(tiny_controlnet), copy.deepcopy(tiny_controlnet)])
    wanted = made(pipe)
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "sequential":
        offload_layers(pipe)
    else:
        pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    for _ in range(2):
        torch.testing.assert_close(made(pipe), wanted)

"""Frozen weights in eight bits or on the CPU: gradients, what stays in memory, resuming, refusals."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from tests.behaviour.training.same_training import assert_equal
from tests.fixtures.published import BASES, XL
from tests.fixtures.training import batch_of
from train.frozen.held_weights import check_holding, held_bytes, held_layers, hold_weights

FORMS = ("int8", "float8")


def unet_of(name: str) -> Any:
    """A small UNet of a published configuration, whose output depends on its context."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(BASES[name][0])
    return unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def context_gradient(unet: Any, name: str, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Output, and gradient of a mean square by the context."""
    generator = torch.Generator().manual_seed(1)
    noisy, context = (
        torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (5, unet.config["cross_attention_dim"]))
    )
    extra = {}
    if name in XL:
        extra = {"added_cond_kwargs": {"text_embeds": torch.randn(2, 1280, generator=generator).to(device)}}
        extra["added_cond_kwargs"]["time_ids"] = torch.full((2, 6), 64.0, device=device)
    context = context.to(device).requires_grad_()
    times = torch.tensor([10, 700], device=device)
    output = unet(noisy.to(device), times, encoder_hidden_states=context, **extra).sample
    output.square().mean().backward()
    assert context.grad is not None
    return output.detach(), context.grad


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


ERRORS = {  # measured: of the gradient by the context, relative to that through the weights in float32
    "sd-1.5": {"int8": 0.0147, "float8": 0.0857},
    "sd-2.1": {"int8": 0.0272, "float8": 0.163},
    "sdxl": {"int8": 0.0219, "float8": 0.128},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ERRORS)
def test_gradients_through_eight_bits_are_those_of_the_rounded_weights(name: str, form: str) -> None:
    """Exactly those, and as far from those of float32 as is written down."""
    pytest.importorskip("torchao")
    held, rounded = unet_of(name), unet_of(name)
    expected = context_gradient(rounded, name)[1]
    hold_weights(held, form, offload=False)
    for layer, other in zip(held_layers(held), held_layers(rounded), strict=True):
        whole = layer.weight.dequantize()
        steps = (whole - other.weight).abs().flatten(1).amax(1) / other.weight.abs().flatten(1).amax(1)
        assert float(steps.max()) < (1 / 127 if form == "int8" else 1 / 28), "one scale for each output channel"
        other.weight.copy_(whole)
    before = [value.clone() for value in held.parameters()]
    found = context_gradient(held, name)[1]
    assert error(found, context_gradient(rounded, name)[1]) < 1e-5
    assert error(found, expected) == pytest.approx(ERRORS[name][form], rel=0.1)
    assert all(map(same, before, held.parameters())), "frozen"


def same(one: Any, other: Any) -> bool:
    """Whether two weights are the same, of whatever kind."""
    return all(torch.equal(getattr(one, part, one), getattr(other, part, other)) for part in ("qdata", "scale"))


@pytest.mark.parametrize("recomputes", [False, True])
def test_weights_on_the_cpu_are_the_same_network(recomputes: bool) -> None:
    unet, held = unet_of("sd-1.5"), unet_of("sd-1.5")
    hold_weights(held, None, offload=True)
    if recomputes:
        held.enable_gradient_checkpointing()
        held.train()
    for found, expected in zip(context_gradient(held, "sd-1.5"), context_gradient(unet, "sd-1.5"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", [None, *FORMS])
def test_weights_stay_where_they_were_and_go_to_each_use(form: str | None) -> None:
    """On a device without numbers, so that a weight that is not brought there would be told."""
    if form is not None:
        pytest.importorskip("torchao")
    unet = unet_of("sdxl")
    hold_weights(unet, form, offload=True)
    unet.to("meta")
    layers = list(held_layers(unet))
    assert len(layers) > 50
    output, gradient = context_gradient(unet, "sdxl", "meta")
    assert output.device.type == gradient.device.type == "meta"
    held = {id(weight) for layer in layers for weight in layer.parameters()}
    for weight in unet.parameters():
        assert weight.device.type == ("cpu" if id(weight) in held else "meta")


def test_layers_keep_neither_weights_nor_inputs_for_the_backward_pass() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2, 1), nn.Flatten(), nn.Linear(80, 2))
    layers.requires_grad_(False)
    kept = []
    for holds in (False, True):
        inputs, saved = torch.rand(2, 3, 10, 10, requires_grad=True), []
        if holds:
            hold_weights(layers, None, offload=True)
        with saved_tensors_hooks(lambda value, saved=saved: saved.append(value) or value, lambda value: value):
            layers(inputs).sum().backward()
        kept.append(len(saved))
    assert kept[0] >= 3
    assert kept[1] == 0


@pytest.mark.parametrize("form", [None, *FORMS])
@pytest.mark.parametrize("offload", [False, True])
def test_counted_bytes_are_those_that_lie_there(form: str | None, offload: bool) -> None:
    if form is not None:
        pytest.importorskip("torchao")
    unet = unet_of("sdxl").to(torch.bfloat16)
    counted = held_bytes(unet, form, offload=offload)
    largest = max(layer.weight.nbytes for layer in held_layers(unet))
    if form is not None or offload:
        hold_weights(unet, form, offload=offload)
        counted -= 2 * largest
    unet.to("meta")
    there = 0
    for weight in unet.parameters():
        inner = [getattr(weight, name, None) for name in ("qdata", "scale", "zero_point")]
        parts = [part for part in inner if part is not None] or [weight]
        there += sum(part.nbytes for part in parts if part.device.type == "meta")
    assert there == counted


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes", [{"frozen_weights": "int8"}, {"frozen_weights": "float8", "offload": ["unet", "vae"]}]
)
def test_a_continued_training_is_that_of_one_that_was_not_stopped(
    changes: dict[str, Any], settings: Any, fit: Callable[..., int], load: Callable[[Path], Any], tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    options = {"run.max_steps": 4, **{f"stage.init_args.{name}": value for name, value in changes.items()}}
    assert fit(settings(**options)) == 0
    whole = load(tmp_path / "run" / "step-00000004.ckpt")
    assert not any(name.startswith(("unet", "vae")) for name in whole["state_dict"])
    broken = {**options, "run.folder": str(tmp_path / "broken")}
    assert fit(settings(**{**broken, "run.max_steps": 2})) == 0
    assert fit(settings(**broken)) == 0
    assert_equal(whole, load(tmp_path / "broken" / "step-00000004.ckpt"))


@pytest.mark.heavy
def test_a_training_with_weights_on_the_cpu_is_the_same_training(
    settings: Any, fit: Callable[..., int], load: Callable[[Path], Any], tmp_path: Path
) -> None:
    ends = []
    for parts in ([], ["unet", "vae"]):
        folder = tmp_path / f"run-{len(parts)}"
        changes = {"run.max_steps": 2, "run.folder": str(folder), "stage.init_args.offload": parts}
        assert fit(settings(**changes)) == 0
        ends.append(load(folder / "step-00000002.ckpt")["state_dict"])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6)


def test_ddp_leaves_held_weights_alone(stage: Any) -> None:
    """It would refuse a module on several kinds of devices, and cannot send weights of eight bits."""
    trained = stage(offload=("unet",))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(trained)
        seen = {id(weight) for weight in wrapped._module_parameters}
    finally:
        torch.distributed.destroy_process_group()
    assert seen == {id(weight) for _, weight in trained.trained_parameters()}
    trained.loss(batch_of(2)).backward()


@pytest.mark.parametrize("changes", [{"frozen_weights": "int8"}, {"offload": ["unet"]}])
def test_a_unet_that_is_compiled_is_not_held(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`compiled`=unet must be left out with `frozen_weights` or `offload`"):
        check_holding({**changes, "compiled": ["unet"]}, "cpu")
    check_holding({"offload": ["vae"], "compiled": ["unet"]}, "cpu")


def test_a_device_without_float8_is_refused() -> None:
    with pytest.raises(ValueError, match="`frozen_weights`=float8 does not exist on the device mps"):
        check_holding({"frozen_weights": "float8"}, "mps")


def test_a_missing_torchao_ends_the_command_with_one_line(
    settings: Any, fit: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    for arguments in ([], ["--plan"]):
        assert fit(settings(**{"stage.init_args.frozen_weights": "int8"}), *arguments) == 2
        shown = capsys.readouterr().err
        assert "`frozen_weights`=int8 has no torchao here." in shown
        assert "pip install 'seecoder[torchao]'" in shown
        assert shown.count("\n") == 1

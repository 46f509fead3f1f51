"""A callback changes a run as diffusers' guides do: in what it returns, in its dictionary, or in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from seecoder.sampling import DemoFusion, RectifiedHR

WAYS = ("write into the dictionary", "return another", "change the tensor")


def fading(way: str, at: int = 1, seen: list[Any] | None = None) -> Callable[..., dict[str, Any] | None]:
    """A callback that fades the latents to the left after one step, in one of the ways that people know."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any] | None:
        if seen is not None:
            seen.append(tensors["latents"].shape[-1])
        if step != at:
            return {}
        factor = torch.linspace(0.0, 1.0, tensors["latents"].shape[-1])
        if way == WAYS[1]:
            return {"latents": tensors["latents"] * factor}
        if way == WAYS[2]:
            tensors["latents"] *= factor
            return None
        tensors["latents"] = tensors["latents"] * factor
        return tensors

    return callback


def test_latents_that_a_callback_changes_are_what_the_run_goes_on_with(pipe, make):
    plain = make(num_inference_steps=4)
    faded = [make(num_inference_steps=4, callback_on_step_end=fading(way)) for way in WAYS]
    assert torch.equal(faded[0], faded[1])
    assert torch.equal(faded[0], faded[2])
    assert (faded[0] - plain).abs().max() > 1e-3
    last = [make(num_inference_steps=4, output_type="latent", callback_on_step_end=fading(way, 3)) for way in WAYS]
    expected = torch.linspace(0.0, 1.0, 8) * make(num_inference_steps=4, output_type="latent")
    assert all(torch.equal(entry, expected) for entry in last)


@pytest.mark.parametrize("method", [DemoFusion(skip_dead_steps=False), RectifiedHR(switch_at=(0.5,))])
def test_a_callback_works_in_every_stage(make, method):
    seen: list[int] = []
    settings = {"height": 32, "width": 32, "num_inference_steps": 4, "method": method, "output_type": "latent"}
    plain = make(**settings, callback_on_step_end=fading(WAYS[0], -1, seen))
    assert set(seen) == {8, 16}
    change = max(place for place, side in enumerate(seen) if side == 8)  # the last step before the size changes
    for step in (0, change, len(seen) - 1):
        assert (make(**settings, callback_on_step_end=fading(WAYS[0], step)) - plain).abs().max() > 1e-4


def test_contexts_may_change_during_a_run(pipe, make, picture):
    other = pipe.encode_context(1 - picture)

    def callback(running, step, timestep, tensors):
        return {"context": other if step == 0 else tensors["context"]}

    shown = ["context", "negative_context"]
    changed = make(num_inference_steps=3, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=shown)
    assert (changed - make(num_inference_steps=3)).abs().max() > 1e-3
    same = make(num_inference_steps=3, callback_on_step_end=lambda *given: given[-1])
    assert torch.equal(same, make(num_inference_steps=3))


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (
            {"prompt_embeds": torch.zeros(1)},
            "gave `prompt_embeds`, which nothing reads; it may change latents",
        ),
        (
            {"latents": torch.zeros(1, 4, 2, 2)},
            r"gave `latents`=\(1, 4, 2, 2\); it must be a tensor of shape \(1, 4",
        ),
        ({"context": None}, "gave `context`=NoneType"),
        (torch.zeros(1), "returned a Tensor; it must return a dictionary"),
    ],
)
def test_what_nothing_reads_is_refused(make, returned, error):
    with pytest.raises(ValueError, match=f"`callback_on_step_end` {error}"):
        make(callback_on_step_end=lambda *given: returned)


def test_a_callback_that_changes_and_stops_shows_what_it_changed(make):
    def callback(running, step, timestep, tensors):
        running._interrupt = True
        return {"latents": torch.ones_like(tensors["latents"])}

    found = make(num_inference_steps=4, output_type="latent", callback_on_step_end=callback)
    assert torch.equal(found, torch.ones_like(found))

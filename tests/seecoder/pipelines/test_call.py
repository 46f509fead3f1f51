"""One call: its arguments and their help, what it does once, and what callbacks change of it."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
)

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.images import gate, masks
from seecoder.images.saving import save_image
from seecoder.pipelines import call
from seecoder.sampling import DemoFusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion, engine
from seecoder.sampling.methods.perceptual import pyramid_distance


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def count_calls(monkeypatch, function, *modules):
    """A list that gets the first argument of every call of a function that these modules use."""
    seen = []

    def counted(*given, **named):
        seen.append(given[0])
        return function(*given, **named)

    for module in modules:
        monkeypatch.setattr(module, function.__name__, counted)
    return seen


def test_each_picture_is_decoded_once(parts, tiny_controlnet, picture, tmp_path, monkeypatch):
    pipe = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipe.set_progress_bar_config(disable=True)
    paths = [str(tmp_path / f"{name}.png") for name in ("own", "control", "start")]
    for path in paths:
        save_image(picture[:, :40, :40], path)
    decoded = count_calls(monkeypatch, gate.read_pixels, gate, masks)
    pipe(
        paths[0], 32, 32, control_image=paths[1], start_image=paths[2], num_inference_steps=2, method=DemoFusion(),
        num_images_per_prompt=2, callback_on_stage_end=lambda *given: None,
    )  # fmt: skip
    assert sorted(decoded) == sorted(paths)


def test_methods_are_composed_once(pipe, picture, monkeypatch):
    composed = count_calls(monkeypatch, call.compose, call, engine)
    method = [MultiDiffusion(stride=4)]
    pipe(picture, 16, 32, num_inference_steps=2, method=method)
    assert composed == [method]


def test_a_tuple_is_given_where_no_object_is_wanted(pipe, picture):
    settings = {"num_inference_steps": 1, "output_type": "latent"}
    output = pipe(picture, generator=torch.Generator().manual_seed(0), **settings)
    images, notes = pipe(picture, generator=torch.Generator().manual_seed(0), return_dict=False, **settings)
    assert torch.equal(images, output.images)
    assert notes == output.notes == []


def test_callback_sees_every_step_and_can_stop(pipe, picture):
    seen = []

    def watch(running, step, timestep, tensors):
        seen.append((step, timestep, sorted(tensors), tensors["latents"].shape))
        running._interrupt = step == 1
        return {}

    output = pipe(
        picture,
        num_inference_steps=5,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "context"],
    )
    assert [step for step, *_ in seen] == [0, 1]
    assert seen[0][1:] == (801.0, ["context", "latents"], (1, 4, 8, 8))
    assert "interrupted after step 2 of 5" in output.notes[0]
    # The next call is not interrupted any more.
    assert pipe(picture, num_inference_steps=1).notes == []


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_callback_sees_what_every_stage_has_reached(pipe, picture, output_type):
    seen = []
    options = {"height": 48, "width": 48, "num_inference_steps": 2, "output_type": output_type}
    final = pipe(
        picture,
        **options,
        method=DemoFusion(),
        generator=seeded(),
        callback_on_stage_end=lambda running, stage, images: seen.append((running, stage, images)),
    ).images
    silent = pipe(picture, **options, method=DemoFusion(), generator=seeded()).images
    assert [(stage.stage_index, stage.num_stages) for _, stage, _ in seen] == [(0, 3), (1, 3)]
    assert all(running is pipe for running, _, _ in seen)
    if output_type == "pil":
        assert [images[0].size for _, _, images in seen] == [(16, 16), (32, 32)]
        assert final[0].tobytes() == silent[0].tobytes()
    else:
        assert all(images is stage.latents for _, stage, images in seen)
        assert torch.equal(final, silent)
    pipe(picture, num_inference_steps=1, callback_on_stage_end=lambda *_: pytest.fail("plain sampling has one stage"))


def test_arguments_are_those_of_the_signature(pipe: Any, picture: Any) -> None:
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    assert pipe(picture, 24, 32, **settings).images.shape[-2:] == (24, 32)
    with pytest.raises(TypeError, match=r"`seed` is no argument of SeeCoderPipeline\(\)\.$"):
        pipe(picture, **settings, seed=1)


@pytest.mark.parametrize(
    ("stock", "ours"),
    [
        ("prompt", "text"),
        ("negative_prompt", "negative_text"),
        ("prompt_embeds", "context"),
        ("negative_pooled_prompt_embeds", "negative_pooled_context"),
    ],
)
def test_names_of_stock_pipelines_are_answered_with_ours(pipe: Any, picture: Any, stock: str, ours: str) -> None:
    with pytest.raises(TypeError, match=rf"`{stock}` is no argument of SeeCoderPipeline\(\); did you mean `{ours}`\?"):
        pipe(picture, **{stock: "a cat"})


@pytest.mark.parametrize(
    "argument",
    [
        {"pooled_context": torch.zeros(1, 3)},
        {"negative_pooled_context": torch.zeros(1, 3)},
        {"original_size": (64, 64)},
        {"crops_coords_top_left": (0, 8)},
        {"target_size": (64, 64)},
    ],
)
def test_what_only_sdxl_reads_is_refused_by_other_bases(pipe: Any, picture: Any, argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` has no effect: this base is not SDXL's"):
        pipe(picture, num_inference_steps=1, **argument)


@pytest.mark.parametrize("pipeline", [SeeCoderPipeline, SeeCoderXLPipeline])
def test_help_of_a_call_documents_every_argument(pipeline: type) -> None:
    text = inspect.getdoc(pipeline.__call__) or ""
    for name in list(inspect.signature(pipeline.__call__).parameters)[1:]:
        assert f"\n    {name}: " in text
    assert "as there" not in text
    assert "**" not in str(inspect.signature(pipeline.__call__))


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
        ({"image": torch.zeros(1)}, "gave `image`, which nothing reads; it may change latents"),
        ({"prompt_embeds": torch.zeros(1)}, "changed `prompt_embeds`, of which only rows may be cut off"),
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


def test_networks_without_gradients_are_refused_where_a_method_takes_them(build):
    with torch.inference_mode():
        pipe = SeeCoderPipeline(build["vae"](), build["unet"](), build["scheduler"]())
    with pytest.raises(ValueError, match=r"`vae` was made in `torch.inference_mode\(\)`"):
        pipe(context=torch.zeros(1, 6, 32), method="syncdiffusion")


def test_parts_that_were_taken_out_are_named_and_a_vae_only_where_one_is_needed(build: Any) -> None:
    given = {"context": torch.zeros(1, 6, 32), "num_inference_steps": 1}
    for part in ("scheduler", "unet", "vae"):
        pipe = SeeCoderPipeline(build["vae"](), build["unet"](), build["scheduler"]())
        setattr(pipe, part, None)
        with pytest.raises(ValueError, match=f"`{part}`=None of the pipeline must be set for a call"):
            pipe(**given)
    assert pipe(**given, output_type="latent").images.shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="`vae`=None"):
        pipe(**given, output_type="latent", method=MultiDiffusion())


def stock_of(parts: dict[str, Any]) -> StableDiffusionPipeline:
    """diffusers' pipeline of the same networks."""
    lacks = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    own = {name: parts[name] for name in ("vae", "unet", "scheduler")}
    stock = StableDiffusionPipeline(**own, **lacks, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock


def test_guidance_ends_in_a_callback_as_with_the_stock_callback(parts: Any, make: Any) -> None:
    context, noise = (torch.randn(shape, generator=seeded(1)) for shape in ((1, 6, 32), (1, 4, 8, 8)))
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": noise, "output_type": "latent"}
    embeds = {"prompt_embeds": context, "negative_prompt_embeds": torch.zeros_like(context)}
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    want = stock_of(parts)(**embeds, **settings, height=16, width=16, callback_on_step_end=cutoff).images

    def ended(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"negative_context": tensors["context"]} if step == 1 else {}

    shown = {"callback_on_step_end": ended, "callback_on_step_end_tensor_inputs": ["context"]}
    torch.testing.assert_close(make(context=context, **settings, **shown), want, atol=1e-5, rtol=0)
    assert (make(context=context, **settings) - want).abs().max() > 1e-3


def test_the_stock_callback_ends_guidance_for_several_results_and_others_may_work_beside_it(
    parts: Any, make: Any
) -> None:
    context, noise = (torch.randn(shape, generator=seeded(1)) for shape in ((2, 6, 32), (2, 4, 8, 8)))
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    cutoff: Any = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    want = torch.cat(
        [
            stock_of(parts)(
                prompt_embeds=context[row : row + 1], negative_prompt_embeds=torch.zeros(1, 6, 32),
                latents=noise[row : row + 1], height=16, width=16, callback_on_step_end=cutoff, **settings,
            ).images
            for row in range(2)
        ]
    )  # fmt: skip
    both = MultiPipelineCallbacks([IPAdapterScaleCutoffCallback(cutoff_step_ratio=1.0), cutoff])
    for callback in (cutoff, both):
        found = make(context=context, latents=noise, callback_on_step_end=callback, **settings)
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


SMALL_METHODS = [
    None,
    MultiDiffusion(),
    ScaleCrafter(damp_tau=1.0),
    RectifiedHR(switch_at=(0.5,)),
    SyncDiffusion(sync_threshold=1.0, loss=pyramid_distance),
]


@pytest.mark.parametrize("method", SMALL_METHODS)
def test_after_guidance_ended_every_method_asks_for_the_positive_branch_alone(
    pipe: Any, make: Any, method: Any
) -> None:
    shares: list[set[bool]] = [set()]  # of every step, whether rows with the zero context were asked

    def pre(unet: Any, given: Any, named: Any) -> None:
        shares[-1].add(bool((given[2] == 0).all((1, 2)).any()))

    def ended(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert running._guidance_scale == (3.0 if step < 2 else 0.0)
        running._guidance_scale = 3.0 if step < 1 else 0.0
        shares.append(set())
        return tensors

    handle = pipe.unet.register_forward_pre_hook(pre, with_kwargs=True)
    make(height=16, width=32, num_inference_steps=4, guidance_scale=3.0, method=method, callback_on_step_end=ended)
    handle.remove()
    assert shares == [{True}, {True}, {False}, {False}, set()]


def test_a_callback_may_set_another_guidance_scale(make: Any) -> None:
    def doubled(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        running._guidance_scale = 6.0 if step == 0 else 3.0

    def same(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        tensors["latents"].copy_(halfway if step == 0 else tensors["latents"])

    settings = {"num_inference_steps": 2, "output_type": "latent"}
    kept: list[torch.Tensor] = []
    make(**settings, guidance_scale=3.0, callback_on_step_end=lambda *given: kept.append(given[3]["latents"].clone()))
    halfway = kept[0]
    want = make(**settings, guidance_scale=6.0, callback_on_step_end=same)
    assert torch.equal(make(**settings, guidance_scale=3.0, callback_on_step_end=doubled), want)


def test_a_callback_is_shown_what_its_own_tensor_inputs_name(make: Any) -> None:
    class Watching(PipelineCallback):
        tensor_inputs = ("context", "negative_context")
        seen: ClassVar[list[set[str]]] = []

        def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: Any) -> dict[str, Any]:
            self.seen.append(set(callback_kwargs))
            return callback_kwargs

    make(callback_on_step_end=Watching())
    assert Watching.seen == [{"context", "negative_context"}] * 2


def test_what_stock_names_show_may_be_cut_and_nothing_else(make: Any) -> None:
    def scaled(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        tensors["prompt_embeds"] *= 2

    shown = {"callback_on_step_end": scaled, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with pytest.raises(ValueError, match="changed `prompt_embeds`, of which only rows may be cut off"):
        make(**shown)
    with pytest.raises(ValueError, match="`add_time_ids` has no effect: this base is not SDXL's"):
        make(callback_on_step_end=scaled, callback_on_step_end_tensor_inputs=["add_time_ids"])

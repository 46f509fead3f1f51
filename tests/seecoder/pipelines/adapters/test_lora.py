"""LoRA: what is loaded is what is seen, and what cannot be is said."""

import copy
import logging

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.pipelines.context.text import encode_text
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pipelines import build_lora, build_scheduler, build_sdxl_unet, build_unet, build_vae

pytest.importorskip("peft")
CONVOLUTIONS = ("downsamplers.0.conv", "conv1", "conv2")


def pipeline(*, xl=False, unet=None):
    cls, made = (SeeCoderXLPipeline, build_sdxl_unet) if xl else (SeeCoderPipeline, build_unet)
    pipe = cls(build_vae(), unet or made(), build_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, **options):
    generator = torch.Generator().manual_seed(0)
    given = {"context": torch.randn(1, 6, 32, generator=generator), "num_inference_steps": 2, "output_type": "latent"}
    if isinstance(pipe, SeeCoderXLPipeline):
        given["pooled_context"] = torch.randn(1, 32, generator=generator)
    return pipe(**given, generator=generator, **options).images


@pytest.mark.parametrize("xl", [False, True])
def test_a_fused_lora_is_the_loaded_one_and_can_be_taken_out_again(xl) -> None:
    pipe = pipeline(xl=xl)
    plain = latents(pipe)
    pipe.load_lora_weights(build_lora(pipe.unet, ("attn2.to_k", *CONVOLUTIONS)))
    loaded = latents(pipe)
    assert (loaded - plain).abs().max() > 1e-2
    pipe.fuse_lora()
    torch.testing.assert_close(latents(pipe), loaded, atol=1e-4, rtol=0)
    pipe.unfuse_lora(components=["unet", "text_encoder"])
    torch.testing.assert_close(latents(pipe), loaded, atol=1e-4, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(latents(pipe), plain, atol=1e-4, rtol=0)


def test_what_would_change_nothing_is_refused() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match="`fuse_lora` has no effect: no LoRA is loaded"):
        pipe.fuse_lora()
    with pytest.raises(ValueError, match="`unfuse_lora` has no effect: no LoRA is fused"):
        pipe.unfuse_lora()


@pytest.fixture
def two():
    """A pipeline with two LoRAs, of which the first is active."""
    pipe = pipeline()
    for name, seed in (("one", 1), ("two", 2)):
        pipe.load_lora_weights(build_lora(build_unet(), ("attn2.to_k", *CONVOLUTIONS), seed=seed), adapter_name=name)
    pipe.set_adapters("one")
    return pipe


def test_what_a_fused_lora_would_pass_over_is_refused(two) -> None:
    alone = latents(two)
    two.fuse_lora()
    for action, given in (
        ("load_lora_weights", (build_lora(build_unet()),)),
        ("fuse_lora", ()),
        ("set_adapters", ("two",)),
        ("delete_adapters", ("one",)),
    ):
        with pytest.raises(ValueError, match=f"`{action}` has no effect while one is fused; call `unfuse_lora"):
            getattr(two, action)(*given)
    two.unfuse_lora()
    two.delete_adapters("two")
    torch.testing.assert_close(latents(two), alone, atol=1e-4, rtol=0)
    two.delete_adapters("one")
    torch.testing.assert_close(latents(two), latents(pipeline()), atol=1e-4, rtol=0)


def test_only_loras_that_are_on_are_fused_and_of_active_ones_that_are_not_it_is_said(two, caplog) -> None:
    two.disable_lora()
    with pytest.raises(ValueError, match=r"no LoRA is loaded and on\. Load one, or call `enable_lora`"):
        two.fuse_lora()
    two.enable_lora()
    two.set_adapters("two")
    second = latents(two)
    two.set_adapters("one")
    two.fuse_lora(adapter_names=["two"])
    assert "['one']: active, but not seen while other LoRAs are fused" in caplog.text
    torch.testing.assert_close(latents(two), second, atol=1e-4, rtol=0)
    two.unload_lora_weights()
    torch.testing.assert_close(latents(two), second, atol=1e-4, rtol=0)


def test_loras_that_are_not_active_are_fused_beside_the_others_if_they_are_named(two, caplog) -> None:
    two.set_adapters(["one", "two"])
    both = latents(two)
    two.set_adapters("one")
    two.fuse_lora(adapter_names=["one", "two"])
    torch.testing.assert_close(latents(two), both, atol=1e-4, rtol=0)
    assert "not seen" not in caplog.text


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_a_lora_that_is_taken_out_again_weighs_what_it_did_before(two, scale) -> None:
    two.set_adapters(["one", "two"], [0.5, 0.25])
    before = latents(two)
    two.fuse_lora(lora_scale=scale)
    assert (latents(two) - before).abs().max() > 1e-2
    two.unfuse_lora(components=["text_encoder"])  # there is none
    two.unfuse_lora()
    torch.testing.assert_close(latents(two), before, atol=1e-4, rtol=0)


def test_several_loras_have_weights_of_their_own() -> None:
    pipe = pipeline()
    plain = latents(pipe)
    for name, seed in (("one", 1), ("two", 2)):
        pipe.load_lora_weights(build_lora(pipe.unet, seed=seed), adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.0, 1.0])
    second = latents(pipe)
    pipe.set_adapters(["one", "two"], [1.0, 0.5])
    both = latents(pipe)
    pipe.set_adapters(["one", "two"], [0.0, 0.0])
    torch.testing.assert_close(latents(pipe), plain)
    other = pipeline()
    other.load_lora_weights(build_lora(other.unet, seed=2))
    torch.testing.assert_close(latents(other), second)
    other.fuse_lora(lora_scale=0.5)
    other.unload_lora_weights()
    other.load_lora_weights(build_lora(other.unet, seed=1), adapter_name="one")
    other.set_adapters("one", 1.0)
    torch.testing.assert_close(latents(other), both, atol=1e-4, rtol=0)


def test_files_with_the_names_of_kohya_and_of_diffusers_are_one_lora(tmp_path) -> None:
    pipe = pipeline()
    tensors = build_lora(pipe.unet)
    save_file(tensors, tmp_path / "kohya.safetensors")
    pipe.load_lora_weights(tmp_path / "kohya.safetensors")
    first = latents(pipe)
    renamed = {}
    for name in (name for name, _ in pipe.unet.named_modules()):
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.alpha" in tensors:  # diffusers' names carry no alpha: 2 of rank 4 is a factor of a half
            renamed[f"unet.{name}.lora_A.weight"] = tensors[f"{key}.lora_down.weight"] * 0.5
            renamed[f"unet.{name}.lora_B.weight"] = tensors[f"{key}.lora_up.weight"]
    save_file(renamed, tmp_path / "diffusers.safetensors")
    other = pipeline()
    other.load_lora_weights(str(tmp_path), weight_name="diffusers.safetensors")
    torch.testing.assert_close(latents(other), first, atol=1e-5, rtol=0)


def test_parts_for_a_text_encoder_are_left_out_and_that_is_said_once(caplog) -> None:
    pipe = pipeline()
    tensors = build_lora(pipe.unet)
    for half, shape in (("down", (4, 768)), ("up", (768, 4))):
        tensors[f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{half}.weight"] = torch.randn(shape)
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(tensors)
    assert [record.message for record in caplog.records if "text encoder" in record.message] == [
        "2 weights of the LoRA are for a text encoder and left out: there is none here."
    ]
    only_text = {key: value for key, value in tensors.items() if key.startswith("lora_te")}
    with pytest.raises(WeightsError, match="the LoRA has no layer of this base's UNet"):
        pipeline().load_lora_weights(only_text)


@pytest.mark.parametrize("xl", [False, True])
def test_text_encoders_that_are_there_get_their_part_as_in_the_stock_pipeline(xl, text_parts, xl_text_parts) -> None:
    given = {name: copy.deepcopy(part) for name, part in (xl_text_parts if xl else text_parts).items()}
    pipe = pipeline(xl=xl)
    pipe.register_modules(**given)
    tensors = build_lora(pipe.unet)
    for place, name in enumerate(("text_encoder", "text_encoder_2") if xl else ("text_encoder",), start=1):
        width, key = (
            given[name].config.hidden_size,
            f"lora_te{place if xl else ''}_text_model_encoder_layers_0_self_attn",
        )
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            for half, shape in (("down", (4, width)), ("up", (width, 4))):
                tensors[f"{key}_{part}.lora_{half}.weight"] = 0.3 * torch.randn(shape)
    before = encode_text(pipe, "abc", [])
    pipe.load_lora_weights(tensors)
    loaded = encode_text(pipe, "abc", [])
    assert (loaded[0] - before[0]).abs().max() > 1e-3
    assert not xl or (loaded[1] - before[1]).abs().max() > 1e-3
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    theirs = stock(
        vae=pipe.vae,
        unet=build_sdxl_unet() if xl else build_unet(),
        scheduler=pipe.scheduler,
        **{
            **{name: copy.deepcopy(part) for name, part in (xl_text_parts if xl else text_parts).items()},
            **({"add_watermarker": False} if xl else absent),
        },
    )
    theirs.load_lora_weights(tensors)
    torch.testing.assert_close(
        loaded[0],
        theirs.encode_prompt("abc", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0],
    )
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(encode_text(pipe, "abc", [])[0], loaded[0], atol=1e-4, rtol=0)


def test_a_lora_of_another_family_is_refused_with_names() -> None:
    wide = build_lora(build_unet(cross_attention_dim=768))
    pipe = pipeline()
    with pytest.raises(WeightsError, match=r"attn2.to_k is 768 wide, which is as in SD 1.x, the UNet's 32"):
        pipe.load_lora_weights(wide)
    assert pipe.get_list_adapters() == {}
    latents(pipe)
    deep = build_lora(
        build_unet(
            block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3
        ),
        ("down_blocks.2.resnets.0.conv1",),
    )
    with pytest.raises(WeightsError, match=r"no layer of this base's UNet \(first: down_blocks.2.resnets.0.conv1\)"):
        pipe.load_lora_weights(deep)


def test_convolutions_for_linear_layers_are_refused_in_one_line() -> None:
    tensors = build_lora(build_unet(), ("conv1",))
    flat = {name: value.flatten(1)[:, : value.shape[1]] if value.ndim > 1 else value for name, value in tensors.items()}
    pipe = pipeline()
    with pytest.raises(WeightsError, match=r"the LoRA does not fit this base: .*size mismatch") as error:
        pipe.load_lora_weights(flat)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(latents(pipe), latents(pipeline()))


def test_layers_that_are_not_there_are_left_out_and_named(caplog) -> None:
    pipe = pipeline()
    tensors = build_lora(pipe.unet)
    for half, shape in (("down", (4, 8, 3, 3)), ("up", (8, 4, 1, 1))):
        tensors[f"lora_unet_down_blocks_9_resnets_0_conv1.lora_{half}.weight"] = torch.randn(shape)
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(tensors)
    assert (
        "1 layers of the LoRA are not in this UNet and left out (first: down_blocks.9.resnets.0.conv1)." in caplog.text
    )


def test_files_that_are_no_lora_are_refused_in_one_line() -> None:
    with pytest.raises(WeightsError, match="no layer of a Stable Diffusion UNet takes") as error:
        pipeline().load_lora_weights({"lora_unet_down_blocks_0.hada_w1_a": torch.ones(2, 2)})
    assert "\n" not in str(error.value)


def test_a_pipeline_with_a_loaded_lora_is_not_saved_to_a_folder_that_cannot_be_read(tmp_path) -> None:
    pipe = pipeline()
    pipe.load_lora_weights(build_lora(pipe.unet))
    with pytest.raises(ValueError, match="the UNet holds an adapter, which the folder could not be read with again"):
        pipe.save_pretrained(tmp_path)
    pipe.fuse_lora()
    wanted = latents(pipe)
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    torch.testing.assert_close(latents(SeeCoderPipeline.from_pretrained(tmp_path)), wanted, atol=1e-5, rtol=0)


def test_a_scale_that_nothing_reads_is_refused() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=r"its scale=0.5 has no effect, since no LoRA is loaded"):
        latents(pipe, cross_attention_kwargs={"scale": 0.5})
    pipe.load_lora_weights(build_lora(pipe.unet))
    whole, none = latents(pipe), latents(pipe, cross_attention_kwargs={"scale": 0.0})
    assert (whole - none).abs().max() > 1e-2
    torch.testing.assert_close(none, latents(pipeline()))


def text_lora(pipe, encoder, parts):
    """A LoRA for the UNet and some layers of the text encoder, in kohya's names."""
    tensors, config, generator = build_lora(pipe.unet), encoder.config, torch.Generator().manual_seed(3)
    for part in parts:
        key = f"lora_te_text_model_encoder_layers_0_{part.replace('.', '_')}"
        gives = config.intermediate_size if part == "mlp.fc1" else config.hidden_size
        tensors[f"{key}.lora_down.weight"] = torch.randn((4, config.hidden_size), generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn((gives, 4), generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return tensors


@pytest.fixture
def with_text(text_parts):
    """A pipeline with a text encoder of its own."""
    pipe = pipeline()
    pipe.register_modules(**{name: copy.deepcopy(part) for name, part in text_parts.items()})
    return pipe


PARTS = [("self_attn.q_proj", "self_attn.v_proj"), ("mlp.fc1",), ("self_attn.k_proj", "mlp.fc1")]


@pytest.mark.parametrize("parts", PARTS)
def test_a_lora_may_change_any_layers_of_a_text_encoder(with_text, parts) -> None:
    encoder = with_text.text_encoder
    tensors = text_lora(with_text, encoder, parts)
    (block,) = [layers[0] for name, layers in encoder.named_modules() if name.endswith("encoder.layers")]
    before = {part: block.get_submodule(part).weight.clone() for part in parts}
    with_text.load_lora_weights(tensors)
    with_text.fuse_lora()
    with_text.unload_lora_weights()
    for part in parts:
        key = f"lora_te_text_model_encoder_layers_0_{part.replace('.', '_')}"
        added = 0.5 * tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]  # alpha 2 of rank 4
        torch.testing.assert_close(block.get_submodule(part).weight, before[part] + added, atol=1e-4, rtol=0)


def test_a_text_encoders_part_of_another_width_is_refused_in_one_line(with_text) -> None:
    tensors = text_lora(with_text, with_text.text_encoder, ("mlp.fc1",))
    name = next(name for name in tensors if name.startswith("lora_te") and "up" in name)
    tensors[name] = torch.cat([tensors[name]] * 2)
    with pytest.raises(WeightsError, match="the LoRA's part for the text encoder does not fit the base's"):
        with_text.load_lora_weights(tensors)


def test_the_scale_of_a_call_is_that_of_the_text_encoders_lora_too(with_text) -> None:
    pipe = with_text
    plain, empty = (encode_text(pipe, text, [])[0] for text in ("abc", ""))
    names = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    pipe.load_lora_weights(text_lora(pipe, pipe.text_encoder, names))
    whole = encode_text(pipe, "abc", [])[0]
    half = encode_text(pipe, "abc", [], 0.5)[0]
    assert min((half - plain).abs().max(), (half - whole).abs().max()) > 1e-3
    torch.testing.assert_close(encode_text(pipe, "abc", [], 0.0)[0], plain)
    torch.testing.assert_close(encode_text(pipe, "abc", [])[0], whole)
    none = latents(pipe, text="abc", text_weight=1.0, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(none, latents(pipeline(), text=plain, negative_text=empty, text_weight=1.0))
    pipe.set_adapters(pipe.get_active_adapters(), [0.5])
    torch.testing.assert_close(encode_text(pipe, "abc", [])[0], half)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_scale_of_a_call_is_gone_after_it(two, scale) -> None:
    two.set_adapters(["one", "two"], [0.5, 0.7])
    before = latents(two)
    changed = latents(two, cross_attention_kwargs={"scale": scale})
    assert (changed - before).abs().max() > 1e-2
    if scale == 0.0:
        torch.testing.assert_close(changed, latents(pipeline()), atol=1e-5, rtol=0)
    assert torch.equal(latents(two), before)


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_scale_of_a_call_is_gone_from_text_encoders_too(with_text, scale) -> None:
    with_text.load_lora_weights(text_lora(with_text, with_text.text_encoder, ["self_attn.q_proj"]))
    with_text.set_adapters(with_text.get_active_adapters(), [0.5])
    before = encode_text(with_text, "abc", [])[0]
    encode_text(with_text, "abc", [], scale)
    assert torch.equal(encode_text(with_text, "abc", [])[0], before)


def test_names_with_a_dot_and_no_names_are_refused_in_one_line() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=r"`adapter_name`='a\.b' must have no dot. Use 'a_b'\.$"):
        pipe.load_lora_weights(build_lora(pipe.unet), adapter_name="a.b")
    pipe.load_lora_weights(build_lora(pipe.unet), adapter_name="a_b")
    before = latents(pipe)
    with pytest.raises(ValueError, match=r"`adapter_names`=\[\] must name a LoRA. Call `disable_lora\(\)`"):
        pipe.set_adapters([])
    assert torch.equal(latents(pipe), before)
    pipe.disable_lora()
    torch.testing.assert_close(latents(pipe), latents(pipeline()), atol=1e-5, rtol=0)


def merged_by_hand(tensors):
    """A UNet with a kohya LoRA added by its definition: weight + up @ down * alpha / rank, alpha = rank without one."""
    unet = build_unet()
    for name, layer in unet.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.lora_down.weight" in tensors:
            down, up = (tensors[f"{key}.lora_{half}.weight"].flatten(1) for half in ("down", "up"))
            alpha = float(tensors.get(f"{key}.alpha", len(down)))
            layer.weight.data += (up @ down).reshape(layer.weight.shape) * alpha / len(down)
    return unet


def test_every_layer_has_its_own_rank_and_alpha() -> None:
    """As LoRAs that were resized have; one of them has no alpha in a part of its layers."""
    tensors = build_lora(build_unet(), ("attn1.to_q", "attn2.to_k", "proj_in", *CONVOLUTIONS))
    alphas = sorted(name for name in tensors if name.endswith(".alpha"))
    for place, name in enumerate(alphas):
        tensors[name] = torch.tensor(float(place % 5))
    for name in alphas[::3]:
        del tensors[name]
    pipe = pipeline()
    pipe.load_lora_weights(tensors)
    torch.testing.assert_close(latents(pipe), latents(pipeline(unet=merged_by_hand(tensors))), atol=1e-3, rtol=0)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_names_that_tell_no_network_are_those_of_the_unet(prefix) -> None:
    kohya = build_lora(build_unet(), ("attn2.to_k",))
    expected, pipe, renamed = latents(pipeline(unet=merged_by_hand(kohya))), pipeline(), {}
    for name in (name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_k")):
        key = f"lora_unet_{name.replace('.', '_')}"
        factor = float(kohya[f"{key}.alpha"]) / len(kohya[f"{key}.lora_down.weight"])
        for half, value in (("A", kohya[f"{key}.lora_down.weight"] * factor), ("B", kohya[f"{key}.lora_up.weight"])):
            renamed[f"{prefix}{name}.lora_{half}.weight"] = value
    pipe.load_lora_weights(renamed)
    torch.testing.assert_close(latents(pipe), expected, atol=1e-3, rtol=0)


def test_files_that_are_missing_or_damaged_or_something_else_are_named(tmp_path) -> None:
    pipe = pipeline()
    with pytest.raises(FileNotFoundError, match=r"`lora`=.*nothere.safetensors does not exist"):
        pipe.load_lora_weights(str(tmp_path / "nothere.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors does not exist"):
        pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    save_file(build_lora(pipe.unet), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    torch.save(build_lora(pipe.unet), tmp_path / "b.bin")
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "c.safetensors")
    reasons = (("a.safetensors", "is truncated"), ("b.bin", "is a pickle"), ("c.safetensors", "unet.emb_params"))
    for name, reason in reasons:
        with pytest.raises(WeightsError, match=reason):
            pipe.load_lora_weights(str(tmp_path / name))


def test_a_file_is_found_by_its_path_and_by_its_folder_and_name(tmp_path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "a.safetensors"
    save_file(build_lora(build_unet()), file)
    places = (
        (file, {}),
        (file, {"weight_name": "a.safetensors"}),
        (file.parent, {"weight_name": "a.safetensors"}),
        (tmp_path, {"subfolder": "inner", "weight_name": "a.safetensors"}),
    )
    for source, options in places:
        pipe = pipeline()
        pipe.load_lora_weights(str(source), **options)
        assert pipe.get_active_adapters() == ["default_0"], options

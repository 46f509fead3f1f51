"""Pipelines are made of a base, of another pipeline, or of what was saved, and come back as they were."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionPipeline,
    T2IAdapter,
)
from safetensors.torch import load_file, save_file

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pipelines import build_controlnet, build_t2i_adapter


@pytest.fixture
def base(base_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(base_folder, tmp_path / "base")


def test_from_base_dtype_and_other_vae(base, build, parts):
    other = build["vae"]()
    pipe = SeeCoderPipeline.from_base(base, encoder=None, vae=other, dtype=torch.bfloat16)
    assert pipe.vae is other
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16


def test_unknown_options_are_refused(base):
    with pytest.raises(TypeError, match="unknown option `device_map`"):
        SeeCoderPipeline.from_base(base, device_map="auto")


def test_the_data_type_has_two_names(base, parts, tmp_path):
    half = torch.bfloat16
    assert SeeCoderPipeline.from_base(base, torch_dtype=half).unet.dtype == half
    with pytest.raises(ValueError, match=r"`torch_dtype`=torch\.bfloat16 contradicts `dtype`=torch\.float16"):
        SeeCoderPipeline.from_base(base, dtype=torch.float16, torch_dtype=half)
    SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved")
    again = SeeCoderPipeline.from_pretrained(tmp_path / "saved", torch_dtype=half)
    assert again.unet.dtype == again.encoder.dtype == half


def test_an_encoder_may_be_named_by_its_folder(base, parts, tmp_path):
    folder = tmp_path / "encoder"
    parts["encoder"].save_pretrained(folder)
    SeeCoderPipeline(**{**parts, "encoder": None}).save_pretrained(tmp_path / "saved")
    expected = parts["encoder"].state_dict()
    for pipe in (
        SeeCoderPipeline.from_base(base, encoder=str(folder)),
        SeeCoderPipeline.from_pretrained(tmp_path / "saved", encoder=folder),
        SeeCoderPipeline.from_pipe(SeeCoderPipeline(**{**parts, "encoder": None}), encoder=folder),
    ):
        assert all(torch.equal(value, expected[name]) for name, value in pipe.encoder.state_dict().items())
    assert SeeCoderPipeline.from_base(base, encoder=folder, dtype=torch.bfloat16).encoder.dtype == torch.bfloat16


def test_diffusers_own_door_finds_the_saved_class(parts, picture, tmp_path):
    pipe = SeeCoderPipeline(**parts)
    pipe.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again) is SeeCoderPipeline
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    found = [one(picture, generator=torch.Generator().manual_seed(0), **settings).images for one in (pipe, again)]
    assert torch.equal(*found)


def test_what_users_of_diffusers_know_is_there(parts, picture):
    pipe = SeeCoderPipeline(**{name: copy.deepcopy(part) for name, part in parts.items()})
    assert {"controlnet", "encoder", "scheduler", "unet", "vae"} <= set(pipe.components)
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    plain = pipe(picture, generator=torch.Generator().manual_seed(0), **settings).images
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    tiled = pipe(picture, generator=torch.Generator().manual_seed(0), **settings).images
    torch.testing.assert_close(tiled, plain, atol=1e-5, rtol=0)
    pipe.to("cpu", torch.bfloat16)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.encoder.dtype == torch.bfloat16
    assert torch.isfinite(pipe(picture, **settings).images).all()


def test_save_and_load_give_the_same_picture(parts, tiny_controlnet, picture, tmp_path):
    pipe = SeeCoderPipeline(**parts, controlnet=tiny_controlnet)
    pipe.save_pretrained(tmp_path / "saved")
    again = SeeCoderPipeline.from_pretrained(tmp_path / "saved")
    assert type(again).__module__ == "seecoder.pipelines"
    assert type(again.encoder).__module__ == "seecoder.encoder"
    pictures = []
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        output = one(picture, num_inference_steps=2, control_image=picture, generator=generator, output_type="pt")
        pictures.append(output.images)
    assert torch.equal(*pictures)


def test_a_pipeline_without_optional_parts_comes_back_without_them(parts, tmp_path):
    SeeCoderPipeline(**{**parts, "encoder": None}).save_pretrained(tmp_path / "saved")
    again = SeeCoderPipeline.from_pretrained(tmp_path / "saved")
    assert again.encoder is None
    assert again.controlnet is None
    given = SeeCoderPipeline.from_pretrained(tmp_path / "saved", encoder=parts["encoder"])
    assert given.encoder is parts["encoder"]


def test_index_names_the_defining_modules(parts, tmp_path):
    """Published folders rely on these names."""
    SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "SeeCoderPipeline"
    assert index["encoder"] == ["seecoder.encoder", "SeeCoder"]
    assert SeeCoderXLPipeline.__module__ == SeeCoderPipeline.__module__ == "seecoder.pipelines"


def test_loading_a_damaged_pipeline_fails(parts, tmp_path):
    SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "encoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="missing"):
        SeeCoderPipeline.from_pretrained(tmp_path / "saved")


def test_another_pipeline_is_refused_with_the_way_out(base):
    with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline, .*\.from_base"):
        SeeCoderPipeline.from_pretrained(base)


def test_a_file_is_no_saved_pipeline_and_the_way_is_said(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match=r"holds a checkpoint in one file, .*\.from_base"):
        SeeCoderPipeline.from_pretrained(tmp_path / "base.safetensors")


def test_pickles_are_not_written(parts, tmp_path):
    with pytest.raises(ValueError, match="pickles"):
        SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved", safe_serialization=False)


def test_from_pipe_shares_networks_and_changes_nothing(parts):
    stock = StableDiffusionPipeline(
        **{name: parts[name] for name in ("vae", "unet", "scheduler")},
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    ours = SeeCoderPipeline.from_pipe(stock, encoder=parts["encoder"])
    assert isinstance(ours, DiffusionPipeline)
    assert ours.unet is stock.unet
    assert ours.vae is stock.vae
    assert SeeCoderPipeline.from_pipe(ours).encoder is parts["encoder"]
    stock.register_modules(scheduler=None)
    with pytest.raises(ValueError, match="`scheduler`=None must be a loaded part"):
        SeeCoderPipeline.from_pipe(stock)
    with pytest.raises(TypeError, match="unknown component `safety_checker`"):
        SeeCoderPipeline.from_pipe(stock, safety_checker=None)


def test_context_arguments_stand_for_the_picture(parts, picture):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    given = pipe.context_arguments(picture)
    assert torch.equal(given["context"], pipe.encode_context(picture))
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    one = pipe(picture, generator=torch.Generator().manual_seed(0), **settings).images
    assert torch.equal(pipe(**given, generator=torch.Generator().manual_seed(0), **settings).images, one)


def test_several_networks_are_saved_and_loaded_again(parts, tmp_path):
    pipe = SeeCoderPipeline(
        **parts,
        controlnet=[build_controlnet(parts["unet"], seed) for seed in (4, 5)],
        adapter=[build_t2i_adapter(seed) for seed in (5, 6, 7)],
    )
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_1_2").is_dir()  # so diffusers writes a third
    again = SeeCoderPipeline.from_pretrained(tmp_path)
    for name in ("controlnet", "adapter"):
        saved, loaded = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], value) for key, value in saved.items())
    pipe.adapter = pipe.adapter.adapters[0]
    with pytest.raises(ValueError, match=r"holds .*/adapter_1, which would be read as one of `adapter`\. Remove it"):
        pipe.save_pretrained(tmp_path)
    folders = [tmp_path / "controlnet", tmp_path / "controlnet_1"]
    other = SeeCoderPipeline.from_base(
        tmp_path, controlnet=folders, adapter=tmp_path / "adapter_1", dtype=torch.float64
    )
    assert [net.dtype for net in (*other.controlnet.nets, other.adapter)] == [torch.float64] * 3


def test_networks_that_were_saved_together_are_read_together(base, parts, tmp_path):
    nets = [build_controlnet(parts["unet"], seed) for seed in (4, 5, 6)]
    adapters = [build_t2i_adapter(seed) for seed in (5, 6, 7)]
    MultiControlNetModel(nets).save_pretrained(f"{tmp_path}/lines")
    MultiAdapter(adapters).save_pretrained(f"{tmp_path}/poses")
    pipe = SeeCoderPipeline.from_base(base, controlnet=f"{tmp_path}/lines/", adapter=tmp_path / "poses")
    for found, wanted in ((pipe.controlnet.nets, nets), (pipe.adapter.adapters, adapters)):
        assert [net.state_dict()[name].sum() for net in found for name in net.state_dict()] == [
            net.state_dict()[name].sum() for net in wanted for name in net.state_dict()
        ]
    alone = SeeCoderPipeline.from_base(base, controlnet=[tmp_path / "lines"], adapter=[tmp_path / "poses"])
    assert len(alone.controlnet.nets) == 1
    assert isinstance(alone.adapter, T2IAdapter)


def test_a_whole_base_is_no_controlnet_unless_it_has_one(base, parts, tmp_path):
    for name in ("controlnet", "adapter"):
        message = (
            rf"`{name}`={base} has no readable config\.json; give the folder of a {name}, or one that holds {name}/"
        )
        with pytest.raises(FileNotFoundError, match=message):
            SeeCoderPipeline.from_base(base, **{name: base})
    SeeCoderPipeline(**parts, controlnet=[build_controlnet(parts["unet"])] * 2).save_pretrained(tmp_path / "saved")
    assert len(SeeCoderPipeline.from_base(base, controlnet=tmp_path / "saved").controlnet.nets) == 2


@pytest.mark.parametrize(
    ("changes", "gives"),
    [
        ({"channels": [8, 32]}, r"\[8, 32\] channels at \[2, 4\]"),
        ({"downscale_factor": 4}, r"\[8, 16\] channels at \[4, 8\]"),
        ({"adapter_type": "full_adapter_xl"}, r"\[8, 16\] channels at \[2, 2\]"),
    ],
)
def test_an_adapter_for_another_unet_is_refused(parts, changes, gives):
    with pytest.raises(
        ValueError, match=rf"`adapter` gives {gives} pixels a cell; this base's UNet wants \[8, 16\] at \[2, 4\]"
    ):
        SeeCoderPipeline(**parts, adapter=build_t2i_adapter(**changes))


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler"])
def test_what_every_base_has_is_asked_for_by_its_name(parts, part, tmp_path):
    message = rf"`{part}`=None must be a loaded part; all have scheduler, vae, unet\. Use `from_base`"
    with pytest.raises(ValueError, match=message):
        SeeCoderPipeline(**{**parts, part: None})
    SeeCoderPipeline(**parts).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for entry in ([None, None], None):
        index = {name: value for name, value in {**index, part: entry}.items() if value is not None}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            SeeCoderPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        SeeCoderPipeline.from_pretrained(tmp_path, **{part: None})


def test_a_path_is_no_part(parts):
    for part in ("encoder", "controlnet", "vae"):
        with pytest.raises(ValueError, match=f"`{part}`=folder must be a loaded part"):
            SeeCoderPipeline(**{**parts, part: "folder"})


def test_lists_of_networks_may_be_empty_or_of_one(base, parts):
    adapter = build_t2i_adapter()
    pipe = SeeCoderPipeline.from_base(base, controlnet=[], adapter=[adapter], dtype=torch.float32)
    assert pipe.controlnet is None
    assert pipe.adapter is adapter
    assert SeeCoderPipeline(**parts, adapter=()).adapter is None


def test_a_data_type_that_is_a_text_is_not_taken_for_float32(base):
    for given in ({"dtype": "float16"}, {"torch_dtype": "auto"}):
        with pytest.raises(ValueError, match=r"`dtype`=.* must be a dtype"):
            SeeCoderPipeline.from_base(base, **given)


@pytest.mark.parametrize("part", ["vae", "controlnet", "adapter"])
def test_what_lies_beside_the_base_is_looked_for_before_the_base_is_read(part, tmp_path):
    for given in ("nothere", ["nothere"]):
        with pytest.raises(FileNotFoundError, match=f"`{part}`=nothere does not exist"):
            SeeCoderPipeline.from_base(tmp_path, **{part: given})

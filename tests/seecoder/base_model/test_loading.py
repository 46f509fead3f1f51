"""Bases and saved pipelines are read strictly, and a base's text encoder is never touched."""

import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.base_model.loading import check_pickles, load_frozen, load_part, scheduler_class
from seecoder.weights.safetensors_files import WeightsError


@pytest.fixture
def base(base_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(base_folder, tmp_path / "base")


def weights_of(base, part):
    return base / part / "diffusion_pytorch_model.safetensors"


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_from_base_reads_three_parts_and_no_text_encoder(base, parts, picture):
    pipe = SeeCoderPipeline.from_base(base, encoder=parts["encoder"])
    for name in ("unet", "vae"):
        ours, theirs = getattr(pipe, name).state_dict(), parts[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(pipe.scheduler.alphas_cumprod, parts["scheduler"].alphas_cumprod)
    assert pipe.scheduler.config["steps_offset"] == 1
    assert not pipe.unet.training


def test_from_base_dtype_and_other_vae(base, build, parts):
    other = build["vae"]()
    pipe = SeeCoderPipeline.from_base(base, encoder=None, vae=other, dtype=torch.bfloat16)
    assert pipe.vae is other
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_missing_unknown_and_misshapen_weights_are_refused(base, part):
    file = weights_of(base, part)
    key = sorted(load_file(file))[0]
    edit(file, lambda tensors: tensors.pop(key))
    with pytest.raises(WeightsError, match=rf"1 weights are missing from `.*{part}` .*{key}"):
        SeeCoderPipeline.from_base(base)
    edit(file, lambda tensors: tensors.update({key: torch.zeros(3, 3, 3, 3, 3)}))
    with pytest.raises(WeightsError, match=key):
        SeeCoderPipeline.from_base(base)


def test_unknown_weights_are_refused(base):
    edit(weights_of(base, "unet"), lambda tensors: tensors.update({"stranger": torch.zeros(1)}))
    with pytest.raises(WeightsError, match=r"1 weights are unknown in `.*unet` .*stranger"):
        SeeCoderPipeline.from_base(base)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pickle_is_never_read(base, part):
    file = weights_of(base, part)
    torch.save(load_file(file), file.with_suffix(".bin"))
    check_pickles(base, part)  # beside safetensors it harms nobody
    file.unlink()
    for load in (SeeCoderPipeline.from_base, lambda base: load_frozen(base, part, "float32")):
        with pytest.raises(FileNotFoundError, match=r"model\.bin is a pickle. Only safetensors files are read"):
            load(base)
    file.with_suffix(".bin").unlink()
    check_pickles(base, part)  # a plan needs the configuration alone
    with pytest.raises(FileNotFoundError, match="Only safetensors files are read"):
        SeeCoderPipeline.from_base(base)


def test_frozen_parts_ask_for_no_gradients_and_are_strict(base, parts):
    unet, vae = (load_frozen(base, part, dtype) for part, dtype in (("unet", "bfloat16"), ("vae", "float32")))
    assert (unet.dtype, vae.dtype) == (torch.bfloat16, torch.float32)
    for network in (unet, vae, load_frozen(base / "vae", "vae", "float32", at_top=True)):
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, parts["vae"].state_dict()[key]) for key, value in vae.state_dict().items())
    edit(weights_of(base, "vae"), lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(WeightsError, match="1 weights are missing"):
        load_frozen(base, "vae", "float32")


def test_an_autoencoder_without_a_posterior_is_not_trained_with(base):
    shutil.rmtree(base / "vae")
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(base / "vae")
    with pytest.raises(ValueError, match="holds a AutoencoderTiny; training needs an AutoencoderKL"):
        load_frozen(base, "vae", "float32")


def test_damaged_weights_are_named(base):
    file = weights_of(base, "vae")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((WeightsError, FileNotFoundError), match="vae"):
        SeeCoderPipeline.from_base(base)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_missing_parts_are_named(base, part):
    shutil.rmtree(base / part)
    with pytest.raises(FileNotFoundError, match=rf"has no `{part}/`"):
        SeeCoderPipeline.from_base(base)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SeeCoderPipeline.from_base(tmp_path / "nowhere")


def test_classes_come_from_a_short_list(base):
    (base / "vae" / "config.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline; expected AutoencoderKL"):
        load_part(base, "vae")
    for name in ("os.system", "FlaxDDIM", "UNet2DConditionModel", "NoSuchScheduler"):
        with pytest.raises(ValueError, match="not a scheduler of diffusers"):
            scheduler_class(name)


def test_unknown_options_are_refused(base):
    with pytest.raises(TypeError, match="unknown option `torch_dtype`"):
        SeeCoderPipeline.from_base(base, torch_dtype=torch.float16)


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
    import json

    SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "SeeCoderPipeline"
    assert index["encoder"] == ["seecoder.encoder", "SeeCoder"]
    assert SeeCoderXLPipeline.__module__ == SeeCoderPipeline.__module__ == "seecoder.pipelines"


def test_loading_a_damaged_pipeline_fails(parts, tmp_path):
    SeeCoderPipeline(**parts).save_pretrained(tmp_path / "saved")
    file = weights_of(tmp_path / "saved", "encoder")
    edit(file, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(WeightsError, match="missing"):
        SeeCoderPipeline.from_pretrained(tmp_path / "saved")


def test_another_pipeline_is_refused_with_the_way_out(base):
    with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline, .*\.from_base"):
        SeeCoderPipeline.from_pretrained(base)


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
    with pytest.raises(TypeError, match="unknown component `text_encoder`"):
        SeeCoderPipeline.from_pipe(stock, text_encoder=None)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # inside diffusers
def test_repositories_that_cannot_be_reached_are_named():
    with pytest.raises(FileNotFoundError, match="someone/a-base"):
        SeeCoderPipeline.from_base("someone/a-base", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"`base`=\./not/here does not exist"):
        SeeCoderPipeline.from_base("./not/here")

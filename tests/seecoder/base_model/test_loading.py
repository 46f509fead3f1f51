"""Bases and saved pipelines are read strictly, and a base's text encoder is never touched."""

import shutil

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from seecoder import SeeCoderPipeline
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


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # inside diffusers
def test_repositories_that_cannot_be_reached_are_named():
    with pytest.raises(FileNotFoundError, match="someone/a-base"):
        SeeCoderPipeline.from_base("someone/a-base", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"`base`=\./not/here does not exist"):
        SeeCoderPipeline.from_base("./not/here")

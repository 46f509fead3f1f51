"""Bases and saved pipelines are read strictly, and a base's text encoder is never touched."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from seecoder import SeeCoderPipeline
from seecoder.base_model.known_bases import base_sizes
from seecoder.base_model.loading import (
    check_weights,
    existing_variant,
    load_beside,
    load_config,
    load_frozen,
    load_part,
)
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pipelines import build_unet, build_vae
from tests.fixtures.single_files import write_checkpoint


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
    with pytest.raises(WeightsError, match=rf"`.*{part}` does not fit .*: 1 weight is missing \({key}\)"):
        SeeCoderPipeline.from_base(base)
    edit(file, lambda tensors: tensors.update({key: torch.zeros(3, 3, 3, 3, 3)}))
    with pytest.raises(WeightsError, match=key):
        SeeCoderPipeline.from_base(base)


def test_unknown_weights_are_refused(base):
    edit(weights_of(base, "unet"), lambda tensors: tensors.update({"stranger": torch.zeros(1)}))
    with pytest.raises(WeightsError, match=r"unet` does not fit UNet2DConditionModel: 1 is unexpected \(stranger\)"):
        SeeCoderPipeline.from_base(base)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pickle_is_never_read(base, part):
    file = weights_of(base, part)
    torch.save(load_file(file), file.with_suffix(".bin"))
    check_weights(base, part)  # beside safetensors it harms nobody
    file.unlink()
    for load in (SeeCoderPipeline.from_base, lambda base: load_frozen(base, part, "float32")):
        with pytest.raises(FileNotFoundError, match=r"model\.bin is a pickle. Only safetensors files are read"):
            load(base)
    file.with_suffix(".bin").unlink()
    check_weights(base, part)  # a plan needs the configuration alone
    with pytest.raises(FileNotFoundError, match="Only safetensors files are read"):
        SeeCoderPipeline.from_base(base)


def test_weights_that_are_not_whole_are_refused_by_their_headers(base):
    file, folder = weights_of(base, "unet"), base / "unet"
    index, other = folder / f"{file.name}.index.json", "diffusion_pytorch_model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"one": file.name, "two": other}}))
    with pytest.raises(FileNotFoundError, match=rf"`.*unet` lacks {other}, one of 2 files that {index.name} names"):
        check_weights(base, "unet")
    (folder / other).write_bytes(file.read_bytes())
    assert check_weights(base, "unet") is None
    (folder / other).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(WeightsError, match=other):
        check_weights(base, "unet")


def test_frozen_parts_ask_for_no_gradients_and_are_strict(base, parts):
    unet, vae = (load_frozen(base, part, dtype) for part, dtype in (("unet", "bfloat16"), ("vae", "float32")))
    assert (unet.dtype, vae.dtype) == (torch.bfloat16, torch.float32)
    for network in (unet, vae, load_frozen(base / "vae", "vae", "float32", at_top=True)):
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, parts["vae"].state_dict()[key]) for key, value in vae.state_dict().items())
    edit(weights_of(base, "vae"), lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(WeightsError, match="1 weight is missing"):
        load_frozen(base, "vae", "float32")


def test_an_autoencoder_without_a_posterior_is_not_trained_with(base):
    shutil.rmtree(base / "vae")
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(base / "vae")
    with pytest.raises(ValueError, match="holds a AutoencoderTiny; training needs an AutoencoderKL or a VQModel"):
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
    (base / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="`scheduler`='UNet2DConditionModel' is not a scheduler of diffusers"):
        load_part(base, "scheduler")


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # inside diffusers
def test_repositories_that_cannot_be_reached_are_named():
    with pytest.raises(FileNotFoundError, match="someone/a-base"):
        SeeCoderPipeline.from_base("someone/a-base", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"`base`=\./not/here does not exist"):
        SeeCoderPipeline.from_base("./not/here")


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_of_the_only_variant_are_found_and_said_once(base, parts, variant, sharded, caplog):
    for part in ("unet", "vae"):
        weights_of(base, part).unlink()
        parts[part].save_pretrained(base / part, variant=variant, max_shard_size="20KB" if sharded else "5GB")
        assert any((base / part).glob("*index*.json")) == sharded
    pipe = SeeCoderPipeline.from_base(base)
    assert torch.equal(pipe.unet.conv_in.weight, parts["unet"].conv_in.weight)
    load_frozen(base, "vae", "float32")  # as a training does
    (record,) = caplog.records
    assert f"weights of `variant`={variant} are read; there are none of `variant`=None" in record.getMessage()


def test_a_variant_is_read_where_it_is_and_weights_without_one_elsewhere(base, parts):
    half = build_unet(sample_size=8)
    with torch.no_grad():
        half.conv_in.weight.zero_()
    half.save_pretrained(base / "unet", variant="fp16")
    pipe = SeeCoderPipeline.from_base(base, variant="fp16")  # the VAE has none
    assert not pipe.unet.conv_in.weight.any()
    assert torch.equal(SeeCoderPipeline.from_base(base).unet.conv_in.weight, parts["unet"].conv_in.weight)
    weights_of(base, "unet").rename(base / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(FileNotFoundError, match=r"`variant`=None has no weights in .*unet; there are fp16, non_ema"):
        SeeCoderPipeline.from_base(base)
    assert existing_variant(base / "scheduler", "fp16") == "fp16"


def test_the_prediction_type_of_a_base_is_corrected(base):
    assert load_part(base, "scheduler", prediction_type="v_prediction").config["prediction_type"] == "v_prediction"
    assert load_config(base, "unet", prediction_type="v_prediction") == load_config(base, "unet")
    pipe = SeeCoderPipeline.from_base(base, prediction_type="v_prediction")
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"


def test_a_vae_beside_a_base_is_its_folder_a_bases_folder_or_a_file(base, parts, tmp_path):
    path = write_checkpoint(tmp_path / "vae.safetensors", {"first_stage_model.": build_vae()}, text=False)
    for source, sdxl in ((base, False), (base / "vae", False), (path, False), (path, True)):
        vae = load_beside(source, "vae", torch.float32, sdxl=sdxl)
        assert torch.equal(vae.decoder.conv_in.weight, parts["vae"].decoder.conv_in.weight)
        assert vae.config["scaling_factor"] == (0.13025 if sdxl else 0.18215)
    with pytest.raises(ValueError, match=r"`adapter`=.*vae\.safetensors must be a folder or a repository"):
        load_beside(path, "adapter", None, sdxl=False)
    with pytest.raises(FileNotFoundError, match="`vae`=nothere does not exist"):
        load_beside("nothere", "vae", None, sdxl=False)
    with pytest.raises(ValueError, match=rf"`{base / 'unet'}` holds a UNet2DConditionModel; expected AutoencoderKL or"):
        load_beside(base / "unet", "vae", None, sdxl=False)


def test_a_base_in_one_file_is_a_base_for_sampling_and_training(parts, tmp_path):
    networks = {"model.diffusion_model.": build_unet(), "first_stage_model.": build_vae()}
    path = write_checkpoint(tmp_path / "base.safetensors", networks)
    pipe = SeeCoderPipeline.from_base(path, dtype=torch.bfloat16)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    assert pipe.scheduler.config["beta_schedule"] == "scaled_linear"
    frozen = load_frozen(path, "unet", "float32")
    assert torch.equal(frozen.conv_in.weight, parts["unet"].conv_in.weight)
    assert not frozen.conv_in.weight.requires_grad
    sizes = base_sizes(str(path))
    assert sizes is not None
    assert (sizes.unet["cross_attention_dim"], sizes.vae["latent_channels"]) == (32, 4)
    assert sizes.scheduler["prediction_type"] == "epsilon"
    pipe.set_progress_bar_config(disable=True)
    images = pipe(context=torch.zeros(1, 6, 32), height=16, width=16, num_inference_steps=1, output_type="pt").images
    assert images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),  # a link of the Hub's cache into nothing
        (b"", "truncated, or no safetensors file"),
        (b"\x10\x02\0\0\0\0\0\0{", "truncated, or no safetensors file"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_files_that_were_not_fetched_whole_are_named_with_the_reason(base, content, reason):
    file = weights_of(base, "unet")
    file.unlink()
    file.symlink_to("nothing") if content is None else file.write_bytes(content)
    with pytest.raises((WeightsError, FileNotFoundError), match=reason) as caught:
        SeeCoderPipeline.from_base(base)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_asked_for_may_be_damaged(base):
    weights_of(base, "unet").with_suffix(".fp16.safetensors").write_bytes(b"")
    assert SeeCoderPipeline.from_base(base).unet is not None


def test_a_base_in_a_folder_of_its_own_is_found_and_named(base, tmp_path):
    for inner in ("outer/sd", "models--a--b/snapshots/0123"):
        shutil.copytree(base, tmp_path / inner)
        (tmp_path / inner / "model_index.json").write_text("{}")
        outer = tmp_path / inner.partition("/")[0]
        with pytest.raises(FileNotFoundError, match=f"has no `scheduler/`; give {tmp_path / inner}"):
            SeeCoderPipeline.from_base(outer)


def test_a_configuration_that_holds_nothing_is_named(base):
    (base / "unet" / "config.json").write_text("null")
    with pytest.raises(FileNotFoundError, match=r"has no readable unet/config\.json"):
        load_config(base, "unet")


def test_a_package_that_reads_quantised_weights_is_asked_for_in_one_line(base, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("bitsandbytes is missing")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", fail)
    with pytest.raises(ImportError, match="unet` needs a package that is not installed: bitsandbytes is missing"):
        load_part(base, "unet")

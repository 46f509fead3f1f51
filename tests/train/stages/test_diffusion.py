import json
from functools import partial

import pytest
import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    VQModel,
)

from data.world.conditioner import load_conditioner
from data.world.scenes import Scenes, sample_scenes
from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from tests.fixtures.encoders import make_encoder
from train.conditioners.channels import Channels
from train.conditioners.label_tokens import LabelTokens
from train.settings import OptimizerSettings
from train.sources.world_data import encode_in_half
from train.stages.diffusion import WorldDiffusionStage, kept_tokens

SIZES = {
    "block_out_channels": [16, 16, 16],
    "attention_heads": [2, 2, 2],
    "norm_num_groups": 4,
    "context_dim": 32,
    "sample_size": 8,
}


@pytest.fixture
def config(base, tmp_path) -> dict:
    vae = str(base / "vae")
    return {
        "run": {
            "folder": str(tmp_path / "run"),
            "max_steps": 3,
            "accelerator": "cpu",
            "log_every": 1,
            "checkpoint_every": 3,
        },
        "stage": {
            "class_path": "train.stages.diffusion.WorldDiffusionStage",
            "init_args": {"optimizer": {"lr": 1e-3}, "ema": {"decay": 0.9}, "vae": vae, **SIZES},
        },
        "data": {
            "class_path": "train.sources.world_data.WorldLatents",
            "init_args": {"vae": vae, "batch_size": 4, "pool_size": 16, "held_out": 4, "image_size": 32},
        },
    }


def stage(base, **changes) -> WorldDiffusionStage:
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in SIZES.items()}
    return WorldDiffusionStage(OptimizerSettings(), vae=str(base / "vae"), **{**sizes, **changes})


def batch_of(count: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "mean": torch.randn(count, 4, 8, 8, generator=generator),
        "std": torch.full((count, 4, 8, 8), 0.1),
        "keys": torch.stack([torch.zeros(count, dtype=torch.long), torch.arange(count)], dim=1),
        "scenes": vars(sample_scenes(count, seed=0)),
        "size_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(count, 6),
    }


def test_tokens_are_dropped_on_their_own_and_all_together():
    draws = torch.rand(40_000, 6, generator=torch.Generator().manual_seed(0))
    keep = kept_tokens(draws, drop_token=0.1, drop_all=0.1)
    assert (keep.float().mean(0) - 0.81).abs().max() < 0.01
    assert float((~keep.any(1)).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert bool(kept_tokens(draws, 0.0, 0.0).all())


def test_gradients_reach_unet_and_conditioner_and_not_dropped_tokens(base):
    trained = stage(base, drop_token=0.0, drop_all=0.0)
    trained.loss(batch_of()).backward()
    silent = [
        name
        for name, weight in trained.named_parameters()
        if weight.grad is None or (float(weight.grad.abs().max()) == 0 and "to_q" not in name and "to_k" not in name)
    ]
    assert silent == []
    blind = stage(base, drop_all=0.999999)
    blind.loss(batch_of()).backward()
    assert all(float(weight.grad.abs().max()) == 0 for weight in blind.conditioner.parameters())


def test_without_other_conditioners_the_scene_is_all_that_is_told(base):
    trained, batch = stage(base).requires_grad_(False), batch_of()
    noisy, times = torch.randn(4, 4, 8, 8), torch.tensor([1, 300, 600, 999])
    context = trained.conditioner(Scenes(**batch["scenes"]))
    assert torch.equal(trained.predictor(batch)(noisy, times), trained.unet(noisy, times, context).sample)
    assert {name.partition(".")[0] for name in trained.state_dict()} == {"unet", "conditioner"}


def told_batch() -> dict:
    labels = {"labels": torch.tensor([[3], [4], [3], [-1]]), "boxes": torch.rand(4, 1, 4)}
    return batch_of() | labels | {"masked": torch.randn(4, 5, 8, 8)}


def test_several_conditions_reach_the_unet_and_each_is_dropped_on_its_own(base):
    parts = [partial(LabelTokens, num_labels=6, octaves=3), partial(Channels, columns={"masked": 5})]
    trained, batch = stage(base, conditioners=parts, drop_token=0.0, drop_all=0.0), told_batch()
    assert trained.unet.config["in_channels"] == 9
    assert trained.num_told == 7
    trained.loss(batch).backward()
    assert trained.conditioners[0].place[0].weight.grad.any()
    assert trained.conditioner.layout[0].weight.grad.any()
    assert trained.unet.conv_in.weight.grad[:, 4:].any()
    trained.requires_grad_(False)
    noisy, times = torch.randn(4, 4, 8, 8), torch.full((4,), 500)
    everything = torch.ones(4, 7, dtype=torch.bool)
    told = trained.predictor(batch, everything)(noisy, times)
    assert torch.equal(told, trained.predictor(batch)(noisy, times))
    for number in range(6):  # the last is dense, and never dropped
        keep = everything.clone()
        keep[0, number] = False
        output = trained.predictor(batch, keep)(noisy, times)
        assert not torch.equal(output[0], told[0])
        torch.testing.assert_close(output[1:], told[1:])
    without_mask = trained.predictor(batch | {"masked": torch.zeros(4, 5, 8, 8)})(noisy, times)
    assert not torch.equal(without_mask, told)


def test_a_base_may_be_told_by_channels_alone(base):
    trained = stage(base, conditioners=[partial(Channels, columns={"masked": 5})], tells_scene=False)
    trained.loss(told_batch()).backward()
    assert trained.conditioner is None
    assert trained.unet.conv_in.weight.grad[:, 4:].any()


def test_the_target_of_velocity_prediction_is_the_velocity(base, monkeypatch):
    trained, batch = stage(base, prediction_type="v_prediction").requires_grad_(False), batch_of()
    batch["std"] = torch.zeros_like(batch["std"])

    def velocity(batch, keep):
        def predict(noisy, times):
            alpha = trained.schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
            noise = (noisy - alpha.sqrt() * batch["mean"]) / (1 - alpha).sqrt()
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * batch["mean"]

        return predict

    monkeypatch.setattr(trained, "predictor", velocity)
    assert float(trained.loss(batch)) < 1e-5


def test_a_base_like_sdxl_reads_a_pooled_vector_and_the_sizes_of_crops(base):
    trained = stage(base, pooled_dim=16, drop_token=0.0, drop_all=0.0).requires_grad_(False)
    batch = batch_of()
    crop = {**batch, "size_ids": torch.tensor([[256.0, 256, 64, 128, 64, 64]]).expand(4, 6)}
    assert float(trained.loss(batch)) != float(trained.loss(crop))
    pooled = trained.conditioner.pool(torch.zeros(2, 5, 32))
    assert pooled.shape == (2, 16)
    assert not pooled.any()
    trained.requires_grad_(True).loss(batch).backward()
    assert float(trained.conditioner.pooled_projection.weight.grad.abs().max()) > 0


def test_a_pooled_vector_without_a_scene_is_refused(base):
    with pytest.raises(ValueError, match="`pooled_dim`=16 must be null without `tells_scene`"):
        stage(base, pooled_dim=16, tells_scene=False)


@pytest.mark.heavy
def test_a_base_like_sdxl_that_saw_crops_is_exported_as_one(config, fit, tmp_path):
    config["stage"]["init_args"] |= {"pooled_dim": 16, "lowest_octave": -2}
    config["data"]["init_args"] |= {"crop_probability": 0.5}
    assert fit(config) == 0
    assert "held_out_loss_crops" in (tmp_path / "run" / "metrics.csv").read_text()
    folder = tmp_path / "run" / "base"
    conditioner = load_conditioner(folder)
    assert len(torch.as_tensor(conditioner.octaves)) == 6
    pipe = SeeCoderXLPipeline.from_base(folder, encoder=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    context = conditioner(sample_scenes(2, 0)).detach()
    pooled = conditioner.pool(context).detach()
    pictures = pipe(context=context, pooled_context=pooled, num_inference_steps=2, output_type="pt")
    assert pictures.images.shape == (2, 3, 32, 32)
    absent = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "feature_extractor", "image_encoder")
    stock = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, **dict.fromkeys(absent))
    assert stock.unet.config["projection_class_embeddings_input_dim"] == 16 + 6 * 32


def test_min_snr_weighs_the_plain_loss_down(base):
    trained = stage(base, drop_token=0.0, drop_all=0.0).requires_grad_(False)
    batch = batch_of(16)
    plain = float(trained.loss(batch))
    trained.min_snr_gamma = 0.5
    assert float(trained.loss(batch)) < plain


def test_posterior_is_scaled(base):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(base / "vae")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = encode_in_half(vae, pixels, batch_size=2)
    with torch.no_grad():
        posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    assert mean.dtype == std.dtype == torch.float16
    assert torch.allclose(mean.float(), 0.7 * posterior.mean, atol=2e-3)
    assert torch.allclose(std.float(), 0.7 * posterior.std, atol=2e-3)


@pytest.mark.heavy
def test_export_is_a_base_that_diffusers_loads(config, fit, load, tmp_path):
    assert fit(config) == 0
    folder = tmp_path / "run" / "base"
    averages = load(tmp_path / "run" / "step-00000003.ckpt")["ema"]["averages"]
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    assert all(torch.equal(value, averages[f"unet.{name}"].half().float()) for name, value in unet.state_dict().items())
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == [None, None]
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["beta_start"] == 0.00085
    context = load_conditioner(folder)(sample_scenes(2, 0)).detach()
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **dict.fromkeys(absent))
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        prompt_embeds=context,
        negative_prompt_embeds=torch.zeros_like(context),
        num_inference_steps=2,
        output_type="pt",
    ).images
    assert pictures.shape == (2, 3, 32, 32)


def conditioned(config, columns, *conditioners, **changes):
    """The configuration of a training that is told more."""
    named = [{"class_path": f"train.conditioners.{name}", "init_args": args} for name, args in conditioners]
    config["stage"]["init_args"] |= {"conditioners": named, **changes}
    config["data"]["class_path"] = "train.sources.WorldConditions"
    config["data"]["init_args"] |= {"columns": columns}
    return config


@pytest.mark.heavy
def test_an_inpainting_base_is_one_for_diffusers_and_for_ours(config, fit, tmp_path):
    hole = ("channels.Channels", {"columns": {"masked": 5}})
    assert fit(conditioned(config, ["masked"], hole)) == 0
    folder = tmp_path / "run" / "base"
    context = load_conditioner(folder)(sample_scenes(1, 0)).detach()
    pixels, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    ours = SeeCoderPipeline.from_base(folder, encoder=None, dtype=torch.float32)
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    stock = StableDiffusionInpaintPipeline.from_pretrained(folder, torch_dtype=torch.float32, **dict.fromkeys(absent))
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    one = ours(context=context, start_image=pixels[0], mask_image=mask[0, 0], mask_feather=0, **common).images
    other = stock(prompt_embeds=context, image=pixels, mask_image=mask, height=32, width=32, **common).images
    assert one.shape == other.shape == (1, 3, 32, 32)
    assert torch.equal(one[mask.expand_as(one) == 0], pixels[mask.expand_as(one) == 0])


@pytest.mark.heavy
def test_a_base_with_a_text_encoder_is_whole(config, fit, text_parts, tmp_path):
    for name, part in text_parts.items():
        part.save_pretrained(tmp_path / "text" / name)
    told = ("text_tokens.TextTokens", {"encoder": str(tmp_path / "text"), "from_scratch": True})
    assert fit(conditioned(config, ["caption"], told, tells_scene=False)) == 0
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "run" / "base", torch_dtype=torch.float32, safety_checker=None, feature_extractor=None
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red disc on sand", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 32, 32)


@pytest.mark.heavy
def test_a_base_told_by_an_encoder_is_a_pipeline_for_pictures(config, fit, load, tmp_path):
    make_encoder(context_dim=32).save_pretrained(tmp_path / "encoder")
    told = ("image_tokens.ImageTokens", {"encoder": str(tmp_path / "encoder")})
    assert fit(conditioned(config, [], told, tells_scene=False)) == 0
    saved = load(tmp_path / "run" / "step-00000003.ckpt")["state_dict"]
    assert not [name for name in saved if name.startswith("conditioners.")], "a frozen encoder is in no checkpoint"
    config["run"]["max_steps"] = 4
    assert fit(config) == 0, "without it, too, a run continues"
    pipe = SeeCoderPipeline.from_pretrained(tmp_path / "run" / "base", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(torch.rand(3, 64, 64), num_inference_steps=2, output_type="pt").images
    assert pictures.shape == (1, 3, 32, 32)


@pytest.mark.heavy
def test_continuing_is_exact(config, fit, load, tmp_path):
    config["run"] |= {"max_steps": 4, "checkpoint_every": 2}
    assert fit(config) == 0
    whole = load(tmp_path / "run" / "step-00000004.ckpt")
    config["run"] |= {"folder": str(tmp_path / "broken"), "max_steps": 2}
    assert fit(config) == 0
    config["run"]["max_steps"] = 4
    assert fit(config) == 0
    again = load(tmp_path / "broken" / "step-00000004.ckpt")
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.mark.heavy
def test_a_run_may_start_from_anothers_weights(config, fit, load, base, tmp_path):
    assert fit(config) == 0
    averages = load(tmp_path / "run" / "step-00000003.ckpt")["ema"]["averages"]
    state = stage(base, init_from=str(tmp_path / "run")).state_dict()
    assert all(torch.equal(state[name], value) for name, value in averages.items())


@pytest.mark.heavy
def test_a_fine_tune_may_keep_the_tokens_of_its_base(config, fit, load, base, tmp_path):
    init_args = config["stage"]["init_args"]
    begun = {name: weight.clone() for name, weight in stage(base).state_dict().items()}
    init_args["train_conditioner"] = False
    fit(config)
    trained = load(tmp_path / "run" / "step-00000003.ckpt")["state_dict"]
    assert all(torch.equal(trained[name], begun[name]) for name in begun if name.startswith("conditioner."))
    assert any(not torch.equal(trained[name], begun[name]) for name in begun if name.startswith("unet."))


def test_a_missing_autoencoder_is_bad_input(config, fit, capsys):
    config["data"]["init_args"]["vae"] = "/no/such/vae"
    assert fit(config) == 2
    assert "/no/such/vae" in capsys.readouterr().err


@pytest.mark.heavy
def test_latents_of_a_codebook_are_diffused_before_quantisation(config, fit, tmp_path):
    levels = 3
    vae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=8,
        mid_block_add_attention=False,
        scaling_factor=0.7,
    )
    vae.save_pretrained(tmp_path / "vae")
    for part in ("stage", "data"):
        config[part]["init_args"]["vae"] = str(tmp_path / "vae")
    assert fit(config) == 0
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = encode_in_half(vae, pixels)
    with torch.no_grad():
        expected = 0.7 * vae.encode(pixels.float() / 127.5 - 1).latents
    torch.testing.assert_close(mean.float(), expected, rtol=1e-3, atol=1e-3)
    assert not std.any()
    pipeline = SeeCoderPipeline.from_base(tmp_path / "run" / "base", encoder=None)
    assert type(pipeline.vae).__name__ == "VQModel"
    assert pipeline.unet.config.in_channels == 3
    index = json.loads((tmp_path / "run" / "base" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "VQModel"]

"""Second stage of Latent Diffusion: a UNet that predicts the noise of latents, conditioned by cross-attention.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), sections 3.2 and 3.3. The
conditioner is trained with the UNet; each of its tokens is dropped now and then, so that partial conditions and the
zero context of guidance exist.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from data.world.conditioner import TOKENS, WorldConditioner
from data.world.scenes import Scenes
from seecoder.base_model.added_conditions import size_conditions
from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE, is_sdxl
from seecoder.base_model.loading import load_config
from seecoder.weights.atomic import atomic_directory
from train.settings import OptimizerSettings
from train.sources.world_data import WHOLE, chunks, window_size_ids
from train.stages.denoising import DenoisingStage
from train.stages.noise import held_out_keys, uniform
from train.stages.noise_schedule import NoiseSchedule
from train.stages.stage import load_stage_weights, save_half


class WorldDiffusionStage(DenoisingStage):
    """Trains a `UNet2DConditionModel` and the world's conditioner on cached latents; exports a diffusers folder.

    Args:
        optimizer: The optimizer and its learning rate.
        vae: Folder of the autoencoder that made the latents, an `AutoencoderKL` or a `VQModel`, whose latents are those
            before quantisation; copied into the export.
        init_from: A run's folder or checkpoint to take weights from (averages where there are); the optimizer starts
            afresh.
        block_out_channels: Channels of the UNet's three levels.
        attention_heads: Heads of each level.
        layers_per_block: Residual layers of each level.
        norm_num_groups: Groups of group normalisation.
        context_dim: Width of a context token.
        lowest_octave: That of the layout token; -2 for data with crops (`WorldConditioner`).
        pooled_dim: Makes a base like SDXL, which reads a pooled vector of this width and the sizes of crops beside the
            tokens; None for one like SD 1.x.
        sample_size: Height and width of the latents.
        prediction_type: What the UNet predicts.
        min_snr_gamma: Weigh the loss by min-SNR; None is the plain mean square.
        drop_token: Probability with which each token is dropped on its own.
        drop_all: Probability with which all tokens of a sample are dropped.
        train_conditioner: Train the conditioner, too. Not for a fine-tune that shares its base's tokens, and the
            encoders trained on these.
        **options: Those of `Stage`.
    """

    def __init__(
        self,
        optimizer: OptimizerSettings,
        vae: str,
        init_from: str | None = None,
        block_out_channels: tuple[int, int, int] = (64, 96, 128),
        attention_heads: tuple[int, int, int] = (2, 3, 4),
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
        context_dim: int = 128,
        lowest_octave: int = 0,
        pooled_dim: int | None = None,
        sample_size: int = 16,
        prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
        min_snr_gamma: float | None = None,
        drop_token: float = 0.1,
        drop_all: float = 0.1,
        train_conditioner: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        self.vae_config = load_config(vae, "vae", at_top=True)
        channels = self.vae_config.get("vq_embed_dim") or self.vae_config.get("latent_channels", 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model_class: Any = UNet2DConditionModel
            added = {} if pooled_dim is None else added_embedding(pooled_dim)
            unet = model_class(
                sample_size=sample_size,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                mid_block_type="UNetMidBlock2DCrossAttn",
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=context_dim,
                attention_head_dim=attention_heads,
                norm_num_groups=norm_num_groups,
                **added,
            )
            octaves = 4 - lowest_octave  # up to the same highest one
            self.conditioner = WorldConditioner(context_dim, octaves, lowest_octave, pooled_dim)
        self.unet = unet.to(memory_format=torch.channels_last)
        if init_from is not None:
            load_stage_weights(self, Path(init_from))
        self.conditioner.requires_grad_(train_conditioner)
        self.scheduler_config = {**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction_type}
        self.schedule = NoiseSchedule(self.scheduler_config)
        self.vae_folder = Path(vae)
        self.min_snr_gamma = min_snr_gamma
        self.drop_token, self.drop_all = drop_token, drop_all

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Weighted mean square of one micro-batch."""
        keys = batch["keys"]
        keep = kept_tokens(uniform(self.seed, "drop", keys, len(TOKENS) + 1), self.drop_token, self.drop_all)
        times = self.uniform_timesteps(keys)
        errors = self._errors(batch, keys, times, keep)
        self.record_levels(errors, times)
        return (errors * self.schedule.min_snr_weights(times, self.min_snr_gamma).to(errors.device)).mean()

    def _errors(self, batch: dict[str, Any], keys: Tensor, times: Tensor, keep: Tensor | None) -> Tensor:
        """Mean square error of each sample; `keep` (N, tokens) says which tokens it is given, None gives all."""
        context = self.conditioner(Scenes(**batch["scenes"]), keep)
        pooled = self.conditioner.pool(context)
        extra = {} if pooled is None else size_conditions(pooled, batch["size_ids"])

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            return self.unet(noisy, times, encoder_hidden_states=context, **extra).sample

        return self.prediction_errors((batch["mean"].float(), batch["std"].float()), keys, times, predict)

    def evaluate(self) -> dict[str, float]:
        """Loss on held-out scenes with always the same noise: with all tokens, with none, and on windows of them."""
        data = self.data
        whole = (
            data.held_out_mean,
            data.held_out_std,
            window_size_ids(WHOLE.expand(data.num_held_out, 3), data.image_size),
        )
        figures = {
            "held_out_loss": self._held_out_loss(whole, data.held_out_scenes),
            "held_out_loss_no_context": self._held_out_loss(whole, data.held_out_scenes, with_context=False),
        }
        if data.crop_probability:
            crops = (*data.held_out_crop_moments, data.held_out_crop_size_ids)
            figures["held_out_loss_crops"] = self._held_out_loss(crops, data.held_out_crops)
        return figures

    def _held_out_loss(self, columns: tuple[Tensor, ...], scenes: Scenes, with_context: bool = True) -> float:
        total = 0.0
        for part in chunks(len(scenes), 64):
            batch: dict[str, Any] = dict(
                zip(("mean", "std", "size_ids"), (column[part] for column in columns), strict=True)
            )
            batch["scenes"] = vars(scenes[part])
            batch = move_data_to_device(batch, self.device)
            keys = held_out_keys(part)
            keep = None if with_context else torch.zeros(len(keys), len(TOKENS), dtype=torch.bool)
            total += float(self._errors(batch, keys, self.uniform_timesteps(keys), keep).sum())
        return total / len(scenes)

    def export(self, folder: Path) -> None:
        """Write `base/`: vae, unet, scheduler, conditioner and model_index.json, in half precision."""
        with atomic_directory(folder / "base", overwrite=True) as temporary:
            shutil.copytree(self.vae_folder, temporary / "vae")
            save_half(self.unet, temporary / "unet")
            save_half(self.conditioner, temporary / "conditioner")
            scheduler: Any = DDIMScheduler.from_config(self.scheduler_config)
            scheduler.save_pretrained(temporary / "scheduler")
            index = model_index(self.vae_config["_class_name"], like_sdxl=is_sdxl(self.unet))
            (temporary / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def kept_tokens(draws: Tensor, drop_token: float, drop_all: float) -> Tensor:
    """Which tokens stay: (N, T + 1) uniform numbers -> (N, T) bool; the last number decides on all of a sample."""
    return (draws[:, :-1] >= drop_token) & (draws[:, -1:] >= drop_all)


def added_embedding(pooled_dim: int, time_dim: int = 32) -> dict[str, Any]:
    """What a UNet's configuration has beside SD 1.x's to read a pooled vector and six sizes, as SDXL's."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_dim,
        "projection_class_embeddings_input_dim": pooled_dim + 6 * time_dim,
    }


def model_index(vae_class: str, like_sdxl: bool = False) -> dict[str, Any]:
    """What makes the folder a Stable Diffusion base, or one of SDXL, without a text encoder."""
    absent = ["feature_extractor", "image_encoder", "text_encoder", "tokenizer"]
    absent += ["text_encoder_2", "tokenizer_2"] if like_sdxl else ["safety_checker"]
    name = "StableDiffusionXLPipeline" if like_sdxl else "StableDiffusionPipeline"
    own = {"force_zeros_for_empty_prompt": True} if like_sdxl else {"requires_safety_checker": False}
    return {name: [None, None] for name in absent} | {
        "_class_name": name,
        "_diffusers_version": diffusers.__version__,
        **own,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae_class],
    }

"""Second stage of Latent Diffusion: a UNet that predicts the noise of latents, conditioned by tokens and by channels.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), sections 3.2 and 3.3. The
conditioners are trained with the UNet; tokens are dropped now and then, so that partial conditions and the zero context
of guidance exist.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from data.world.conditioner import TOKENS, WorldConditioner
from data.world.scenes import Scenes
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import STABLE_DIFFUSION_SCHEDULE, is_sdxl, reads_mask
from seecoder.base_model.loading import load_config
from seecoder.weights.atomic import atomic_directory
from train.conditioners.channels import ConditionPart
from train.settings import OptimizerSettings
from train.sources.world_data import chunks
from train.stages.denoising import DenoisingStage
from train.stages.encoder_weights import load_widened
from train.stages.noise import held_out_keys, uniform
from train.stages.noise_schedule import NoiseSchedule
from train.stages.stage import save_half


class WorldDiffusionStage(DenoisingStage):
    """Trains a `UNet2DConditionModel` and its conditioners on cached latents; exports a diffusers folder.

    Args:
        optimizer: The optimizer and its learning rate.
        vae: Folder of the autoencoder that made the latents, an `AutoencoderKL` or a `VQModel`, whose latents are those
            before quantisation; copied into the export.
        init_from: A base's folder, or a run's folder or checkpoint (averages where there are), to take weights from;
            the optimizer starts afresh. Input channels that the source lacks begin at zero.
        tells_scene: Tell the scene's attributes and layout, by the world's own conditioner.
        conditioners: What else the UNet is told, by classes of `train.conditioners`, made with `context_dim`.
        block_out_channels: Channels of the UNet's three levels.
        attention_heads: Heads of each level.
        layers_per_block: Residual layers of each level.
        norm_num_groups: Groups of group normalisation.
        context_dim: Width of a context token.
        lowest_octave: That of the layout token; -2 for data with crops (`WorldConditioner`).
        pooled_dim: Makes a base like SDXL, which reads a pooled vector of this width, the scene's, and the sizes of
            crops beside the tokens; None for one like SD 1.x.
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
        tells_scene: bool = True,
        conditioners: Sequence[Callable[[int], ConditionPart]] = (),
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
        if pooled_dim is not None and not tells_scene:
            raise ValueError(f"`pooled_dim`={pooled_dim} must be null without `tells_scene`, which gives that vector.")
        self.vae_config = load_config(vae, "vae", at_top=True)
        channels = self.vae_config.get("vq_embed_dim") or self.vae_config.get("latent_channels", 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model_class: Any = UNet2DConditionModel
            added = {} if pooled_dim is None else added_embedding(pooled_dim)
            made = [make(context_dim) for make in conditioners]
            unet = model_class(
                sample_size=sample_size,
                in_channels=channels + sum(part.num_channels for part in made),
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
            scene = WorldConditioner(context_dim, octaves, lowest_octave, pooled_dim)
        self.conditioner = scene.requires_grad_(train_conditioner) if tells_scene else None
        self.conditioners: Any = nn.ModuleList(made)
        self.num_told = len(TOKENS) + len(made)
        frozen = [f"{number}.{name}" for number, part in enumerate(made) for name in part.frozen_names]
        self.frozen_names = tuple(f"conditioners.{name}" for name in frozen)
        self.unet = unet.to(memory_format=torch.channels_last)
        if init_from is not None:
            load_widened(self, Path(init_from))
        self.freeze_parts()
        self.scheduler_config = {**STABLE_DIFFUSION_SCHEDULE, "prediction_type": prediction_type}
        self.schedule = NoiseSchedule(self.scheduler_config)
        self.vae_folder = Path(vae)
        self.min_snr_gamma = min_snr_gamma
        self.drop_token, self.drop_all = drop_token, drop_all

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Weighted mean square of one micro-batch."""
        keys = batch["keys"]
        draws = uniform(self.seed, "drop", keys, self.num_told + 1)
        times = self.uniform_timesteps(keys)
        errors = self._errors(batch, times, kept_tokens(draws, self.drop_token, self.drop_all))
        self.record_levels(errors, times)
        return (errors * self.schedule.min_snr_weights(times, self.min_snr_gamma).to(errors.device)).mean()

    def predictor(self, batch: dict[str, Any], keep: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Give the UNet with the conditions of a batch: noisy latents and timesteps -> its prediction.

        Args:
            batch: What the data source gives.
            keep: (N, num_told) bool: which of the scene's tokens and of the other conditioners count; None for all.
        """
        count, latents = len(batch["keys"]), batch["mean"]
        keep = torch.ones(count, self.num_told, dtype=torch.bool) if keep is None else keep
        told = list(zip(self.conditioners, keep[:, len(TOKENS) :].T, strict=True))
        tokens = [part(batch, kept) for part, kept in told if not part.num_channels]
        below = [part(batch, latents.shape[-2:]) for part, _ in told if part.num_channels]
        extra: dict[str, Any] = {}
        if self.conditioner is not None:
            scene = self.conditioner(Scenes(**batch["scenes"]), keep[:, : len(TOKENS)])
            pooled = self.conditioner.pool(scene)
            extra = {} if pooled is None else added_conditions(pooled, batch["size_ids"])
            tokens.append(scene)
        if not tokens:  # cross-attention needs one
            tokens = [torch.zeros(count, 1, self.unet.config["cross_attention_dim"], device=latents.device)]
        context = torch.cat(tokens, dim=1)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            return self.unet(torch.cat([noisy, *below], dim=1), times, encoder_hidden_states=context, **extra).sample

        return predict

    def _errors(self, batch: dict[str, Any], times: Tensor, keep: Tensor | None) -> Tensor:
        """Mean square error of each sample; `keep` is that of `predictor`."""
        moments = (batch["mean"].float(), batch["std"].float())
        return self.prediction_errors(moments, batch["keys"], times, self.predictor(batch, keep))

    def evaluate(self) -> dict[str, float]:
        """Loss on held-out scenes with always the same noise: told all, without any token, and on windows of them."""
        cases = {"held_out_loss": {}, "held_out_loss_no_context": {"with_context": False}}
        cases |= {"held_out_loss_crops": {"crops": True}} if self.data.crop_probability else {}
        return {name: self._held_out_loss(**options) for name, options in cases.items()}

    def _held_out_loss(self, with_context: bool = True, crops: bool = False) -> float:
        total, count = 0.0, self.data.num_held_out
        for part in chunks(count, 64):
            keys = held_out_keys(part)
            batch = self.data.held_out_latents(keys, self.device, crops)
            keep = None if with_context else torch.zeros(len(keys), self.num_told, dtype=torch.bool)
            total += float(self._errors(batch, self.uniform_timesteps(keys), keep).sum())
        return total / count

    def export(self, folder: Path) -> None:
        """Write `base/`: vae, unet, scheduler, conditioners and model_index.json, the networks in half precision."""
        with atomic_directory(folder / "base", overwrite=True) as temporary:
            shutil.copytree(self.vae_folder, temporary / "vae")
            save_half(self.unet, temporary / "unet")
            if self.conditioner is not None:
                save_half(self.conditioner, temporary / "conditioner")
            scheduler: Any = DDIMScheduler.from_config(self.scheduler_config)
            scheduler.save_pretrained(temporary / "scheduler")
            index = model_index(self.vae_config["_class_name"], like_sdxl=is_sdxl(self.unet))
            if reads_mask(self.unet):
                index["_class_name"] = "StableDiffusionInpaintPipeline"
            for part in self.conditioners:
                index |= part.export(temporary)
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

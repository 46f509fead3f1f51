"""First stage of Latent Diffusion: an autoencoder, regularised by a divergence (KL) or by a codebook (VQ).

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), section 3.1. Published is the
absolute difference with LPIPS of weight 1 and a patch-adversarial term that begins late. The default loss needs no
pretrained weights: it weighs differences of neighbouring pixels, which keeps edges and textures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from seecoder.base_model.latents import encode_moments
from seecoder.base_model.loading import load_part
from seecoder.checks import FLAG, optional, require, whole
from seecoder.weights.atomic import atomic_directory
from seecoder.weights.strict_loading import load_strict
from train.settings import OptimizerSettings
from train.sources.world_data import to_model_range
from train.stages.first_stage.adversary import AdversarialSettings, Adversary, PatchDiscriminator
from train.stages.first_stage.perceptual_distance import load_distance
from train.stages.first_stage.reconstruction import (
    check_autoencoder,
    codebook_figures,
    latent_std,
    mean_psnr,
    reconstruct,
    reconstruction_terms,
)
from train.stages.noise import normal
from train.stages.previews import save_rows
from train.stages.stage import Stage, save_half


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the loss terms; all are means over elements, so they do not depend on sizes.

    Attributes:
        absolute: Of |x - y|.
        squared: Of (x - y)².
        gradient: Of the absolute difference between horizontal and vertical pixel differences of x and y.
        perceptual: Of the perceptual distance; needs `perceptual_network`.
        kl: Of the posterior's divergence from a standard normal, mean over latent elements; without a codebook. The
            published 1e-6 is of sums: at f = 8 with 4 channels that is 2e-8 of means.
        codebook: Of the distance between latents and the vectors they become; with a codebook.
    """

    absolute: float = 1.0
    squared: float = 1.0
    gradient: float = 0.5
    perceptual: float = 0.0
    kl: float = 5e-4
    codebook: float = 1.0


class AutoencoderStage(Stage):
    """Trains diffusers' `AutoencoderKL` or `VQModel`; exports `vae/` with the measured `scaling_factor`.

    Args:
        optimizer: The optimizer and its learning rate.
        block_out_channels: Channels of each level; every level but the last halves height and width: three levels are
            f = 4, four are f = 8, five are f = 16.
        layers_per_block: Residual layers of each level.
        latent_channels: Channels of the latent, and length of a codebook's vectors.
        norm_num_groups: Groups of group normalisation.
        sample_size: Picture size that the export's config names.
        attention: Attention in the middle, at the lowest resolution, as published.
        codebook_size: Vectors of the codebook of a `VQModel`; None for an `AutoencoderKL`.
        loss: Weights of the loss terms.
        perceptual_network: LPIPS weights (`scripts/convert_lpips.py`), or the folder of a backbone
            (`world_backbone.yaml`) whose features are compared.
        adversarial: Patch discriminator; None for none.
        init_from: Folder of an autoencoder of the same sizes to begin with.
        decoder_only: Train the decoder alone. Latents and their scale stay those of `init_from`, so that bases and
            encoders that were made for these latents fit the result, too.
        **options: Those of `Stage`.
    """

    def __init__(
        self,
        optimizer: OptimizerSettings,
        block_out_channels: tuple[int, ...] = (16, 32, 64),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        norm_num_groups: int = 8,
        sample_size: int = 64,
        attention: bool = False,
        codebook_size: int | None = None,
        loss: AutoencoderLoss = AutoencoderLoss(),
        perceptual_network: str | None = None,
        adversarial: AdversarialSettings | None = None,
        init_from: str | None = None,
        decoder_only: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        require("attention", attention, FLAG)
        require("codebook_size", codebook_size, optional(whole(2)))
        require("decoder_only", decoder_only, FLAG)
        if decoder_only and init_from is None:
            raise ValueError("`decoder_only`=true needs `init_from`, the folder of the autoencoder whose latents stay.")
        levels = len(block_out_channels)
        model_class: Any = AutoencoderKL if codebook_size is None else VQModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            vae: Any = model_class(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                latent_channels=latent_channels,
                norm_num_groups=norm_num_groups,
                sample_size=sample_size,
                mid_block_add_attention=attention,
                **({} if codebook_size is None else {"num_vq_embeddings": codebook_size}),
            )
        self.vae = vae.to(memory_format=torch.channels_last)
        self.codebook_size = codebook_size
        self.weights = loss
        self.scaling_factor: float | None = None  # of latents that stay
        if init_from is not None:
            source = load_part(init_from, "vae", at_top=True)
            load_strict(vae, source.state_dict(), source=init_from)
            self.scaling_factor = source.config["scaling_factor"] if decoder_only else None
        encoding = ("encoder", "quant_conv") if codebook_size is None else ("encoder", "quant_conv", "quantize")
        self.frozen_names = tuple(f"vae.{name}" for name in encoding) if decoder_only else ()
        self._add_perceptual(perceptual_network)
        self.freeze_parts()
        self._add_adversary(adversarial)
        self._pairs: list[tuple[Tensor, Tensor]] = []  # pictures and outputs, for the discriminator's step

    def _add_perceptual(self, path: str | None) -> None:
        if (path is None) != (self.weights.perceptual == 0):
            raise ValueError(
                f"`perceptual_network`={path} and its loss weight `perceptual`={self.weights.perceptual} are one: "
                "give both or neither."
            )
        self.perceptual = None if path is None else load_distance(path)
        if self.perceptual is not None:
            self.frozen_names += ("perceptual",)

    def _add_adversary(self, settings: AdversarialSettings | None) -> None:
        self.adversary: Adversary | None = None
        if settings is None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            self.discriminator = PatchDiscriminator(settings.channels, settings.layers)
        self.adversary = Adversary(self.discriminator, settings)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Reconstruction and regularisation of one micro-batch."""
        pixels = to_model_range(batch["pixels"]).contiguous(memory_format=torch.channels_last)
        output, regularisation = self._pass(pixels, batch["keys"])
        terms = reconstruction_terms(output, pixels)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(output, pixels).mean()
        total = torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum()
        if self.adversary is not None and self.adversary.is_active(self.global_step):
            last_weight = self.vae.decoder.conv_out.weight
            term, terms["adaptive_weight"] = self.adversary.generator_term(total, output, last_weight)
            total = total + term
            self._pairs.append((pixels, output.detach()))
        for name, value in {**terms, **regularisation}.items():
            self.record(name, value)
        return total + sum(getattr(self.weights, name) * value for name, value in regularisation.items())

    def _pass(self, pixels: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures as they come out, float32, and the term of the loss that is on their latents."""
        mean, std = (values.float() for values in encode_moments(self.vae, pixels))
        if self.codebook_size is None:
            noise = normal(self.seed, "posterior", keys, mean.shape[1:]).to(mean.device)
            divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
            return self.vae.decode(mean + std * noise).sample.float(), {"kl": divergence}
        vectors, distance, (_, _, codes) = self.vae.quantize(mean)
        for name, value in codebook_figures(codes, self.codebook_size).items():
            self.record(name, value)
        return self.vae.decode(vectors, force_not_quantize=True).sample.float(), {"codebook": distance}

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The autoencoder's; the discriminator has an optimizer of its own."""
        return ((name, weight) for name, weight in super().trained_parameters() if name.startswith("vae."))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step the autoencoder, then the discriminator on the same pictures, unless the guard dropped the step."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        pairs, self._pairs = self._pairs, []
        if self.adversary is not None and pairs and not self.guard.skipped_in_a_row:
            self.record("discriminator", self.adversary.train_step(pairs))

    def on_fit_start(self) -> None:
        """Move what a checkpoint brought for the discriminator's optimizer to where the discriminator is by now."""
        super().on_fit_start()
        if self.adversary is not None:
            self.adversary.load_state_dict(self.adversary.optimizer.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the discriminator's optimizer."""
        super().on_save_checkpoint(checkpoint)
        if self.adversary is not None:
            checkpoint["adversary"] = self.adversary.optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the discriminator's optimizer."""
        super().on_load_checkpoint(checkpoint)
        if self.adversary is not None:
            self.adversary.load_state_dict(checkpoint["adversary"])

    def evaluate(self) -> dict[str, float]:
        """Figures of held-out pictures, decoded without noise: PSNR in decibels, perceptual distance."""
        pixels = self.data.held_out_pixels
        if not len(pixels):
            return {}
        output = reconstruct(self.vae, pixels)
        figures = {"psnr": mean_psnr(output, pixels)}
        if self.perceptual is not None:
            pairs = zip(output.split(16), pixels.split(16), strict=True)
            moved = [(one.to(self.device), to_model_range(other).to(self.device)) for one, other in pairs]
            distances = [self.perceptual(*pair).mean() * len(pair[0]) for pair in moved]
            figures["held_out_perceptual"] = float(torch.stack(distances).sum()) / len(pixels)
        return figures

    def export(self, folder: Path) -> None:
        """Write `vae/` in half precision, check that it reads back the same, and write a sheet of reconstructions.

        The scale of the latents is measured anew for the weights that are written, always on the same pictures, unless
        they stay those of another autoencoder.
        """
        pixels = self.data.held_out_pixels
        if not len(pixels):
            pixels = self.data.first_pixels()
        factor = self.scaling_factor or round(1 / latent_std(self.vae, pixels), 5)
        with atomic_directory(folder / "vae", overwrite=True) as temporary:
            save_half(self.vae, temporary, scaling_factor=factor)
        check_autoencoder(self.vae, pixels, folder / "vae", measured=self.scaling_factor is None)
        shown = pixels[:8]
        sheet = folder / "previews" / f"step-{self.global_step:08d}.png"
        save_rows([shown.cpu() / 255, (reconstruct(self.vae, shown) + 1) / 2], sheet)

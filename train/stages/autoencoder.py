"""First stage of Latent Diffusion: a KL-regularised autoencoder.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), section 3.1. The default loss
weighs differences of neighbouring pixels in place of a perceptual network, which cannot be had without pretrained
weights: that keeps edges and textures. A perceptual term (any timm pyramid) and a patch-adversarial one can be
switched on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from seecoder.base_model.loading import load_part
from seecoder.weights.atomic import atomic_directory
from train.settings import OptimizerSettings
from train.sources.world_data import chunks, to_model_range
from train.stages.autoencoder_losses import (
    AdversarialSettings,
    Adversary,
    PatchDiscriminator,
    PerceptualDistance,
    load_network,
)
from train.stages.noise import normal
from train.stages.stage import Stage, save_half


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the loss terms; all are means over elements, so they do not depend on sizes.

    Attributes:
        absolute: Of |x - y|.
        squared: Of (x - y)².
        gradient: Of the absolute difference between horizontal and vertical pixel differences of x and y.
        perceptual: Of the perceptual distance; needs `perceptual_network`.
        kl: Of the posterior's divergence from a standard normal, mean over latent elements.
    """

    absolute: float = 1.0
    squared: float = 1.0
    gradient: float = 0.5
    perceptual: float = 0.0
    kl: float = 5e-4


class AutoencoderStage(Stage):
    """Trains diffusers' `AutoencoderKL`; exports `vae/` with the measured `scaling_factor`.

    Args:
        optimizer: The optimizer and its learning rate.
        block_out_channels: Channels of each level; every level but the last halves height and width.
        layers_per_block: Residual layers of each level.
        latent_channels: Channels of the latent.
        norm_num_groups: Groups of group normalisation.
        sample_size: Picture size that the export's config names.
        loss: Weights of the loss terms.
        perceptual_network: Folder of a backbone (`world_backbone.yaml`) whose features are compared.
        adversarial: Patch discriminator; None for none.
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
        loss: AutoencoderLoss = AutoencoderLoss(),
        perceptual_network: str | None = None,
        adversarial: AdversarialSettings | None = None,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        levels = len(block_out_channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model_class: Any = AutoencoderKL
            vae = model_class(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                latent_channels=latent_channels,
                norm_num_groups=norm_num_groups,
                sample_size=sample_size,
                mid_block_add_attention=False,
            )
        self.vae = vae.to(memory_format=torch.channels_last)
        self.weights = loss
        self._add_perceptual(perceptual_network)
        self._add_adversary(adversarial)
        self._last: tuple[Tensor, Tensor] | None = None  # pictures and outputs, for the discriminator's step

    def _add_perceptual(self, folder: str | None) -> None:
        if (folder is None) != (self.weights.perceptual == 0):
            raise ValueError(
                f"`perceptual_network`={folder} and its loss weight `perceptual`={self.weights.perceptual} are one: "
                "give both or neither."
            )
        self.perceptual = None if folder is None else PerceptualDistance(load_network(folder))
        if self.perceptual is not None:
            self.frozen_names = ("perceptual",)

    def _add_adversary(self, settings: AdversarialSettings | None) -> None:
        self.adversary: Adversary | None = None
        if settings is None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            self.discriminator = PatchDiscriminator(settings.channels, settings.layers)
        self.adversary = Adversary(self.discriminator, settings)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Reconstruction and divergence of one micro-batch."""
        pixels = to_model_range(batch["pixels"]).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        noise = normal(self.seed, "posterior", batch["keys"], mean.shape[1:]).to(mean.device)
        output = self.vae.decode(mean + std * noise).sample.float()
        terms = reconstruction_terms(output, pixels)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(output, pixels)
        total = torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum()
        if self.adversary is not None and self.adversary.is_active(self.global_step):
            last_weight = self.vae.decoder.conv_out.weight
            term, terms["adaptive_weight"] = self.adversary.generator_term(total, output, last_weight)
            total = total + term
            self._last = (pixels, output.detach())
        terms["kl"] = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        for name, value in terms.items():
            self.record(name, value)
        return total + self.weights.kl * terms["kl"]

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The autoencoder's; the discriminator has an optimizer of its own."""
        return ((name, weight) for name, weight in super().trained_parameters() if name.startswith("vae."))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step the autoencoder, then the discriminator on the last micro-batch."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.adversary is not None and self._last is not None:
            self.record("discriminator", self.adversary.train_step(*self._last))
            self._last = None

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
        """PSNR of held-out pictures, in decibels, decoded from the posterior's mean."""
        pixels = self.data.held_out_pixels
        return {"psnr": mean_psnr(self.vae, pixels)}

    def export(self, folder: Path) -> None:
        """Write `vae/` in half precision, and check that it reads back the same."""
        pixels = self.data.held_out_pixels
        factor = round(1 / latent_std(self.vae, pixels), 5)
        with atomic_directory(folder / "vae", overwrite=True) as temporary:
            save_half(self.vae, temporary, scaling_factor=factor)
        check_autoencoder(self.vae, pixels, folder / "vae")


def reconstruction_terms(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean absolute, squared, and gradient difference of (N, C, H, W) pictures."""
    difference = output - target
    down, across = difference.diff(dim=2), difference.diff(dim=3)
    return {
        "absolute": difference.abs().mean(),
        "squared": difference.square().mean(),
        "gradient": down.abs().mean() + across.abs().mean(),
    }


@torch.no_grad()
def mean_psnr(vae: Any, pixels: Tensor, batch_size: int = 64) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in decibels; pixels are (N, 3, H, W) uint8."""
    total = 0.0
    for part in chunks(len(pixels), batch_size):
        target = to_model_range(pixels[part]).to(vae.device)
        output = vae.decode(vae.encode(target).latent_dist.mode()).sample.clamp(-1, 1).float()
        errors = (output - target).div(2).square().flatten(1).mean(1)
        total += float((-10 * errors.log10()).sum())
    return total / len(pixels)


@torch.no_grad()
def latent_std(vae: Any, pixels: Tensor, batch_size: int = 64) -> float:
    """Standard deviation of sampled latents over all elements; 1 / this is `scaling_factor`.

    Source: Rombach et al. (2022), appendix G.
    """
    count, total, squares = 0, 0.0, 0.0
    for part in chunks(len(pixels), batch_size):
        posterior = vae.encode(to_model_range(pixels[part]).to(vae.device)).latent_dist
        mean, variance = posterior.mean.double(), posterior.var.double()
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + variance).sum())  # expected over the posterior, without drawing from it
    return (squares / count - (total / count) ** 2) ** 0.5


@torch.no_grad()
def check_autoencoder(vae: Any, pixels: Tensor, folder: Path, tolerance: float = 0.02) -> None:
    """Compare a written autoencoder with the one in memory, and the spread of its scaled latents with 1.

    Raises:
        RuntimeError: Pictures differ by more than `tolerance` of the range on average, or the spread by 2 %.
    """
    written = load_part(folder, "vae", at_top=True)
    spread = latent_std(written, pixels) * written.config.scaling_factor
    if not abs(spread - 1) <= 0.02:
        raise RuntimeError(f"Scaled latents of {folder} have a standard deviation of {spread:.3g}, not 1.")
    target = to_model_range(pixels[:8])
    device = vae.device
    expected = vae.decode(vae.encode(target.to(device)).latent_dist.mode()).sample.float().cpu()
    output = written.decode(written.encode(target).latent_dist.mode()).sample
    difference = float((output - expected).abs().mean()) / 2
    if not difference <= tolerance:
        raise RuntimeError(
            f"The autoencoder in {folder} differs from the trained one by {difference:.3g} of the range."
        )

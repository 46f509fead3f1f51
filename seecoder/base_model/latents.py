"""Between pixels, the autoencoder's latents x, and the scaled latents z that the UNet is trained on and samples.

An autoencoder's configuration says how its latents become about unit normal. There are three conventions in diffusers,
and they are all here:

    z = scaling_factor * x                                           Stable Diffusion 1.x, 2.x and XL
    z = scaling_factor * (x - shift_factor)                          Stable Diffusion 3
    z = scaling_factor * (x - latents_mean) / latents_std            StableDiffusionXLPipeline, one number a channel

Nothing else in this project scales latents. Whatever does is a `ValueError` for a configuration that has both
`shift_factor` and `latents_mean`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seecoder.checks import number, require


def check_scaling(config: Mapping[str, Any]) -> None:
    """Refuse an autoencoder whose configuration does not say one way how its latents are scaled.

    Args:
        config: Its configuration.

    Raises:
        ValueError: It has no factor above 0, both `shift_factor` and `latents_mean`, or not one mean and one deviation
            a channel.
    """
    require("scaling_factor", config.get("scaling_factor", 1.0), number(0.0, above_minimum=True), owner="the VAE")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:  # one alone says nothing, as in diffusers
        return
    if shift := config.get("shift_factor"):
        raise ValueError(
            f"`shift_factor`={shift} of the autoencoder must be null beside `latents_mean`. Set one of them to null in "
            "vae/config.json."
        )
    channels = config.get("latent_channels", 4)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"`latents_mean`={mean} and `latents_std`={std} of the autoencoder must be {channels} "
            "numbers each, one a channel, and deviations above 0. Take the published vae/config.json."
        )


def _scale_of(vae: Any, latents: Tensor) -> tuple[float | Tensor, float, float | Tensor]:
    """What x is shifted by, multiplied by, and divided by."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    check_scaling(config)
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config["scaling_factor"], 1.0
    mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return mean, config["scaling_factor"], std


def scale_latents(vae: Any, latents: Tensor) -> Tensor:
    """Z = scaling_factor * (x - shift) / std, with `latents_mean` or `shift_factor` as the shift.

    Args:
        vae: The autoencoder; its configuration is used.
        latents: (N, C, h, w), x as its encoder gives them.

    Returns:
        (N, C, h, w) in the same dtype: z as the UNet reads them.
    """
    shift, factor, std = _scale_of(vae, latents)
    return (latents - shift) * factor / std


def unscale_latents(vae: Any, latents: Tensor) -> Tensor:
    """X = z * std / scaling_factor + shift, the inverse of `scale_latents`.

    Args:
        vae: The autoencoder; its configuration is used.
        latents: (N, C, h, w), z as the UNet gives them.

    Returns:
        (N, C, h, w) in the same dtype: x as the decoder reads them.
    """
    shift, factor, std = _scale_of(vae, latents)
    return latents * std / factor + shift


def encode_moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation of the latents x, which are not scaled.

    Args:
        vae: The autoencoder. That of a `VQModel` has no posterior: its latents are those before quantisation, which its
            decoder does, and they do not deviate.
        pixels: (N, 3, H, W) in [-1, 1], of its dtype.

    Returns:
        Two (N, C, h, w).
    """
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latents"):
        return encoded.latents, torch.zeros_like(encoded.latents)
    return encoded.latent_dist.mean, encoded.latent_dist.std


@torch.no_grad()
def encode_posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation of the scaled latents' posterior, N(mean, std^2).

    The deviation is not shifted: std_z = scaling_factor * std_x / latents_std.

    Args:
        vae: The autoencoder; the deviation of a `VQModel` is 0.
        pixels: (N, 3, H, W) in [-1, 1]; cast to its dtype.

    Returns:
        Two (N, C, h, w) float32 tensors.
    """
    mean, std = (values.float() for values in encode_moments(vae, pixels.to(vae.dtype)))
    _, factor, divisor = _scale_of(vae, std)
    return scale_latents(vae, mean), std * factor / divisor


@torch.no_grad()
def decode_pixels(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents to pixels, as a whole.

    Args:
        vae: The autoencoder.
        latents: (N, C, h, w), z as the UNet gives them.

    Returns:
        (N, 3, H, W) float32 in [0, 1].
    """
    pixels = vae.decode(unscale_latents(vae, latents).to(vae.dtype), return_dict=False)[0]
    return pixels.float().add(1).div(2).clamp(0, 1)

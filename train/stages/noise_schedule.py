"""The forward process in float32, from the base model's own scheduler config.

bf16 has 733 distinct values for the 1,000 of the schedule and turns timestep 999 into 1000, so nothing here is ever
less than float32 and int64.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from seecoder.base_model.facts import prediction_type

PREDICTIONS = ("epsilon", "v_prediction")

# Stable Diffusion's released schedule; the text of the Prompt-Free Diffusion paper says 8.5e-5, which no released
# model uses.
STABLE_DIFFUSION_SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class NoiseSchedule(nn.Module):
    """Noisy latents and training targets.

    Args:
        scheduler_config: Config of the base model's diffusers scheduler; its schedule and `prediction_type` are used.

    Raises:
        ValueError: The base predicts neither noise nor velocity.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]):
        super().__init__()
        scheduler: Any = DDIMScheduler.from_config(dict(scheduler_config))
        self.prediction = prediction_type(scheduler)
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"`prediction_type`={self.prediction!r} of the base is not trained with; accepted: {PREDICTIONS}."
            )
        self.num_timesteps = int(scheduler.config["num_train_timesteps"])
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)
        self.alphas_cumprod: Tensor

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) of (N,) int64 timesteps, as (N, 1, 1, 1) float32.

        Raises:
            TypeError: The schedule or the timesteps were cast.
        """
        if self.alphas_cumprod.dtype != torch.float32 or timesteps.dtype != torch.int64:
            raise TypeError(
                f"schedule is {self.alphas_cumprod.dtype}, timesteps are {timesteps.dtype}; need float32 and int64."
            )
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4); float32."""
        signal, level = self.signal_and_noise(timesteps)
        return signal * latents.float() + level * noise.float()

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should say: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans, Ho 2022, app. D)."""
        if self.prediction == "epsilon":
            return noise.float()
        signal, level = self.signal_and_noise(timesteps)
        return signal * noise.float() - level * latents.float()

    @staticmethod
    def check_gamma(gamma: float | None) -> None:
        """Refuse a gamma whose weights are zero or negative.

        Raises:
            ValueError: It is not above 0.
        """
        if gamma is not None and not gamma > 0:
            raise ValueError(f"`min_snr_gamma`={gamma} must be above 0; null is the plain mean square.")

    def min_snr_weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Weights min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity (Hang et al. 2023); ones without gamma."""
        if gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        abar = self.alphas_cumprod[timesteps]
        snr = abar / (1 - abar)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def weighted_timesteps(self, draws: Tensor, gamma: float | None) -> tuple[Tensor, Tensor]:
        """Timesteps as often as min-SNR weighs them, so that no sample is spent where its loss would hardly count.

        A mean over timesteps in proportion to w, times the mean of w, is the mean of w-weighted losses over uniform
        ones: the same gradient, from fewer samples (importance sampling; Nichol, Dhariwal 2021, section 3.3).

        Args:
            draws: (N,) uniform numbers in [0, 1).
            gamma: That of `min_snr_weights`.

        Returns:
            (N,) int64 timesteps, and () float32, the mean of w: the weight of every loss.
        """
        device = self.alphas_cumprod.device
        weights = self.min_snr_weights(torch.arange(self.num_timesteps, device=device), gamma)
        bounds = weights.double().cpu().cumsum(0)  # on the CPU: the same timesteps on every device
        times = torch.searchsorted(bounds, draws.to(bounds) * bounds[-1], right=True)
        return times.clamp_(max=self.num_timesteps - 1).to(device), weights.mean()

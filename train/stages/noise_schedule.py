"""The forward process in float32, by the base model's own scheduler.

bfloat16 has 733 distinct values for the 1,000 of the schedule and turns timestep 999 into 1000. So the schedule is no
buffer of a module, which a cast of the module would round; it is float32 always, and timesteps are int64.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seecoder.base_model.schedulers import training_schedule
from seecoder.checks import number, optional

MIN_SNR_GAMMA = optional(number(0.0, above_minimum=True))  # with another one weights are zero or negative
PREDICTIONS = ("epsilon", "v_prediction")


class NoiseSchedule:
    """Noisy latents, training targets, and what each timestep counts.

    Args:
        scheduler_config: Config of the base model's diffusers scheduler; its schedule and `prediction_type` are used.

    Attributes:
        prediction: What the UNet says: "epsilon" or "v_prediction".
        num_timesteps: Timesteps of the schedule.
        alphas_cumprod: (num_timesteps,) float32 on the CPU: what is left of the signal's variance, "alpha bar".

    Raises:
        ValueError: The base predicts neither noise nor velocity, or was not trained on a whole schedule of betas.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self.scheduler: Any = training_schedule(scheduler_config)
        self.prediction = str(self.scheduler.config["prediction_type"])
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"`prediction_type`={self.prediction!r} of the base must be one of {', '.join(PREDICTIONS)}. Use "
                "another base."
            )
        self.num_timesteps = int(self.scheduler.config["num_train_timesteps"])
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod
        is_fraction = self.scheduler.betas == self.scheduler.betas.clamp(0, 1)
        if len(is_fraction) != self.num_timesteps or not bool(is_fraction.all()):
            raise ValueError(f"`betas` of the base must be {self.num_timesteps} numbers from 0 to 1. Repair its file.")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4); float32.

        Args:
            latents: (N, C, h, w) clean latents.
            noise: The same shape.
            timesteps: (N,) int64.
        """
        self._check_dtypes(timesteps)
        return self.scheduler.add_noise(latents.float(), noise.float(), timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should say: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans, Ho 2022, app. D)."""
        self._check_dtypes(timesteps)
        if self.prediction == "epsilon":
            return noise.float()
        return self.scheduler.get_velocity(latents.float(), noise.float(), timesteps)

    def _check_dtypes(self, timesteps: Tensor) -> None:
        found = (self.scheduler.alphas_cumprod.dtype, timesteps.dtype)
        assert found == (torch.float32, torch.int64), f"schedule and timesteps are {found}; need float32 and int64."

    def min_snr_weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Weights min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity (Hang et al. 2023); ones without gamma.

        Args:
            timesteps: (N,) int64 on the CPU.
            gamma: Largest signal-to-noise ratio that counts in full, or None.

        Returns:
            (N,) float32 on the CPU.
        """
        if gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        abar = self.alphas_cumprod[timesteps]
        snr = abar / (1 - abar)
        weights = (gamma / snr).clamp(max=1)  # 1 also where no signal is left (zero terminal SNR)
        return weights if self.prediction == "epsilon" else weights * abar  # abar = SNR / (SNR + 1)

    def weighted_timesteps(self, draws: Tensor, gamma: float | None) -> tuple[Tensor, Tensor]:
        """Timesteps as often as min-SNR weighs them, so that no sample is spent where its loss would hardly count.

        A mean over timesteps in proportion to w, times the mean of w, is the mean of w-weighted losses over uniform
        ones: the same gradient, from fewer samples (importance sampling; Nichol, Dhariwal 2021, section 3.3).

        Args:
            draws: (N,) uniform numbers in [0, 1).
            gamma: That of `min_snr_weights`.

        Returns:
            (N,) int64 timesteps, and () float32, the mean of w: the weight of every loss; both on the CPU.
        """
        weights = self.min_snr_weights(torch.arange(self.num_timesteps), gamma)
        bounds = weights.double().cumsum(0)
        times = torch.searchsorted(bounds, draws.to(bounds) * bounds[-1], right=True)
        return times.clamp_(max=self.num_timesteps - 1), weights.mean()

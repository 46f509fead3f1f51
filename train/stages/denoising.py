"""What trainings of and through a denoising UNet share: noise that belongs to samples, the loss, its log by level."""

from collections.abc import Callable

import torch
from torch import Tensor

from train.stages.noise import normal, uniform
from train.stages.noise_schedule import NoiseSchedule
from train.stages.stage import Stage

NUM_LEVELS = 4  # the log shows the loss in this many equal ranges of timesteps


class DenoisingStage(Stage):
    """Base of stages whose loss is the mean square error of a UNet's prediction (Ho et al. 2020, eq. 14).

    Attributes:
        schedule: The forward process; set by the subclass.
    """

    schedule: NoiseSchedule

    def uniform_timesteps(self, keys: Tensor) -> Tensor:
        """Timesteps of the samples' own, all equally likely: (N, 2) keys -> (N,) int64 on the CPU."""
        count = self.schedule.num_timesteps
        return (uniform(self.seed, "timestep", keys, 1)[:, 0].double() * count).long().clamp_(max=count - 1)

    def prediction_errors(
        self,
        moments: tuple[Tensor, Tensor],
        keys: Tensor,
        times: Tensor,
        predict: Callable[[Tensor, Tensor], Tensor],
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean square error of each sample's prediction. The noise depends on the keys alone.

        Args:
            moments: Mean and standard deviation of the scaled latent's posterior, each (N, C, h, w) float32.
            keys: (N, 2) int64 epoch and sample number.
            times: (N,) int64 timesteps on the CPU.
            predict: The UNet with its conditions: noisy latents in float32 and timesteps on their device -> output.
            weights: What each place of the latent counts, (N, 1, h, w); None: all the same.

        Returns:
            (N,) float32.
        """
        mean, std = moments
        shape, device = mean.shape[1:], mean.device
        latents = mean + std * normal(self.seed, "posterior", keys, shape).to(device)
        noise = normal(self.seed, "noise", keys, shape).to(device)
        times = times.to(device)
        noisy = self.schedule.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        output = predict(noisy, times).float()
        errors = (output - self.schedule.target(latents, noise, times)).square()
        if weights is None:
            return errors.flatten(1).mean(1)
        return (errors * weights).sum((1, 2, 3)) / weights.expand_as(errors).sum((1, 2, 3))

    def record_levels(self, errors: Tensor, times: Tensor) -> None:
        """Log the mean error of each range of timesteps, as `loss_level_1` (little noise), `loss_level_2`, ..."""
        levels = (times * NUM_LEVELS // self.schedule.num_timesteps).to(errors.device)
        for level in range(NUM_LEVELS):
            chosen = errors[levels == level]
            if len(chosen):
                self.record(f"loss_level_{level + 1}", chosen.mean())

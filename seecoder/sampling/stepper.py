"""The only place that talks to a diffusers scheduler: one step per noise field, whatever the views were.

Kept, because no library offers it: the schedulers hide their history and their place in the trajectory in counters, and
have no common way to start inside it, to forget it, or to say how much noise a step has.

Notation: a sample of the trajectory is `alpha * x0 + sigma * noise`, with x0 the clean latents. Schedulers with
`sigmas` that scale the network's input (Euler and its kin) keep alpha = 1 (variance exploding); the others keep
alpha² + sigma² = 1.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from seecoder.checks import short_repr
from seecoder.sampling.randomness import Randomness

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_TINY_ALPHA = 1e-3  # below it (zero terminal signal-to-noise ratio) noise says nothing about x0


class Stepper:
    """A private copy of a scheduler, set to one run.

    The given scheduler is copied and never changed. All history of multistep schedulers lives in the copy and is
    dropped by `restart`.

    Args:
        scheduler: Any diffusers scheduler of the noise-, v- or sample-predicting kind.
        num_inference_steps: Steps of the whole trajectory; not used where the schedule is given.
        eta: DDIM's stochasticity in [0, 1]; must be 0 for schedulers that have no such option.
        randomness: Where the scheduler's own noise comes from.
        device: Where the timesteps live.
        schedule: `timesteps` or `sigmas` by name, in place of the scheduler's own spacing.

    Raises:
        ValueError: If the scheduler predicts something else (flow matching), `eta` has no effect on it, or it does not
            take the schedule.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int,
        *,
        eta: float,
        randomness: Randomness,
        device: torch.device,
        schedule: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.name = type(scheduler).__name__
        self.prediction_type = str(scheduler.config.get("prediction_type", "none"))
        if self.prediction_type not in _PREDICTION_TYPES:
            raise ValueError(
                f"`scheduler`={self.name} predicts {self.prediction_type!r}; sampling accepts "
                f"{', '.join(_PREDICTION_TYPES)}. Use for instance DDIMScheduler or EulerDiscreteScheduler."
            )
        self._scheduler = copy.deepcopy(scheduler)
        self._schedule: Mapping[str, Any] = schedule or {"num_inference_steps": num_inference_steps}
        self._check_schedule()
        self._device = device
        self._keywords = self._step_keywords(eta, randomness)
        self.num_train_timesteps = int(scheduler.config["num_train_timesteps"])
        self.restart(0)
        self.timesteps: torch.Tensor = self._scheduler.timesteps
        self.times: list[float] = [float(time) for time in self.timesteps]
        self.alphas_cumprod = self._alphas_cumprod()
        self.variance_exploding = self._scales_its_input()
        self.restart(0)

    def _check_schedule(self) -> None:
        accepted = inspect.signature(self._scheduler.set_timesteps).parameters
        for name, values in self._schedule.items():
            if name not in accepted:
                raise ValueError(
                    f"`{name}`={short_repr(values)} has no effect with {self.name}, which spaces its steps itself. "
                    "Give `num_inference_steps`, or use EulerDiscreteScheduler."
                )

    def _step_keywords(self, eta: float, randomness: Randomness) -> dict[str, Any]:
        accepted = inspect.signature(self._scheduler.step).parameters
        keywords: dict[str, Any] = {"return_dict": False}
        if "generator" in accepted:
            keywords["generator"] = randomness.generators
        if "eta" in accepted:
            keywords["eta"] = eta
        elif eta != 0.0:
            raise ValueError(f"`eta`={eta} has no effect with {self.name}. Set it to 0, or use DDIMScheduler.")
        return keywords

    def _alphas_cumprod(self) -> list[float]:
        """Cumulative alpha (the fraction of the variance that is signal) at every step of the schedule."""
        sigmas = getattr(self._scheduler, "sigmas", None)
        if sigmas is not None:
            levels = [float(sigma) for sigma in sigmas[: len(self.timesteps)]]
            if hasattr(self._scheduler, "sigmas_interpol"):  # DPM2: a half step lies between two levels
                known = self._scheduler.log_sigmas.double().cpu().numpy()
                for index in range(1, len(levels), 2):
                    levels[index] = float(np.exp(np.interp(self.times[index], range(len(known)), known)))
            return [1.0 / (1.0 + level**2) for level in levels]
        table = self._scheduler.alphas_cumprod
        return [float(table[int(timestep)]) for timestep in self.timesteps]

    def _scales_its_input(self) -> bool:
        """Whether the scheduler hands the network a scaled sample: the mark of a variance-exploding one."""
        ones = torch.ones(1, device=self._device)
        return bool((self._scheduler.scale_model_input(ones, self.timesteps[0]) != ones).any())

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def order(self) -> int:
        """Evaluations of a whole step: 2 for schedulers such as Heun, else 1."""
        return int(getattr(self._scheduler, "order", 1))

    @property
    def num_inference_steps(self) -> int:
        """Whole steps of the trajectory."""
        return int(getattr(self._scheduler, "num_inference_steps", None) or -(-len(self) // self.order))

    @property
    def initial_scale(self) -> float:
        """Standard deviation of the noise that the whole trajectory starts from."""
        return float(self._scheduler.init_noise_sigma)

    def restart(self, index: int) -> None:
        """Forget all history; the next step is `index`. Needed after a change of resolution or a large edit.

        Raises:
            ValueError: If the scheduler cannot start inside its trajectory.
        """
        if index > 0:
            self.require_restarts()
        self._scheduler.set_timesteps(**self._schedule, device=self._device)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(index)

    def require_restarts(self) -> None:
        """Check that the scheduler can start anywhere; methods of several stages do so before they begin.

        Raises:
            ValueError: If it cannot (PNDM's Runge-Kutta-like first steps).
        """
        if hasattr(self._scheduler, "prk_timesteps"):
            raise ValueError(
                f"`scheduler`={self.name} cannot start inside its trajectory, which this method needs. "
                "Use DDIMScheduler.from_config(scheduler.config) or another scheduler without a warm-up."
            )

    def is_boundary(self, index: int) -> bool:
        """Whether step `index` begins a whole step (two-evaluation schedulers such as Heun have half steps)."""
        return index % self.order == 0

    def whole_step(self, index: int) -> int:
        """The last step from `index` backwards that begins a whole step."""
        while not self.is_boundary(index):
            index -= 1
        return index

    def scale_input(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """What the network sees of `latents` at step `index`; linear in `latents`."""
        return self._scheduler.scale_model_input(latents, self.timesteps[index])

    def coefficients(self, index: int) -> tuple[float, float]:
        """(alpha, sigma) at step `index`: a sample there is alpha * x0 + sigma * noise."""
        alpha_cumprod = self.alphas_cumprod[index]
        if self.variance_exploding:
            return 1.0, ((1.0 - alpha_cumprod) / alpha_cumprod) ** 0.5
        return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5

    def alpha_after(self, index: int) -> float:
        """Factor on the clean latents in the sample that step `index` gives."""
        return self.coefficients(index + 1)[0] if index + 1 < len(self) else 1.0

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """The sample of step `index` made of these clean latents and this unit-variance noise."""
        alpha, sigma = self.coefficients(index)
        return alpha * x0 + sigma * noise

    def predict_x0(self, output: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The clean latents that the network's `output` implies for the sample `latents` of step `index`."""
        if self.prediction_type == "sample":
            return output
        alpha, sigma, unit = self._unit_variance(latents, index)
        if self.prediction_type == "epsilon":
            return (unit - sigma * output) / alpha
        return alpha * unit - sigma * output

    def carry_over(self, output: torch.Tensor, seen: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Turn a prediction about one sample into a prediction about another that has the same noise.

        A network that saw a filtered sample (DemoFusion's blurred lattices) predicted the noise in that sample. Noise
        predictions hold for the other sample as they are; v- and sample-predictions are computed anew. Where there is
        (almost) no signal left x0 is kept in place of the noise, which says nothing about x0 there.

        Args:
            output: What the network predicted about `seen`, (B, C, H, W): noise, v or sample.
            seen: The sample that the network saw.
            latents: The sample that the result is about.
            index: The step.
        """
        if self.prediction_type == "epsilon":
            return output
        alpha, sigma, unit = self._unit_variance(latents, index)
        change = self._unit_variance(seen, index)[2] - unit
        if self.prediction_type == "sample":
            return output if alpha < _TINY_ALPHA else output - change / alpha
        if alpha < _TINY_ALPHA:
            return output - (alpha / sigma) * change
        return output + (sigma / alpha) * change

    def _unit_variance(self, latents: torch.Tensor, index: int) -> tuple[float, float, torch.Tensor]:
        """(alpha, sigma, sample) of step `index` in the variance-preserving convention."""
        alpha_cumprod = self.alphas_cumprod[index]
        alpha, sigma = alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5
        return alpha, sigma, latents * alpha if self.variance_exploding else latents

    def step(self, output: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """One step of the scheduler on the whole sample: from step `index` to the next noise level."""
        return self._scheduler.step(output, self.timesteps[index], latents, **self._keywords)[0]

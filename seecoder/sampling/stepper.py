"""The only place that talks to a diffusers scheduler: one step per noise field, whatever the views were.

Kept, because no library offers it: the schedulers hide their history and their place in the trajectory in counters, and
have no common way to start inside it, to forget it, or to say how much noise a step has.

Notation: a sample of the trajectory is `alpha * x0 + sigma * noise`, with x0 the clean latents. Schedulers with
`sigmas` that scale the network's input (Euler and its kin) keep alpha = 1 (variance exploding); the others keep
alpha² + sigma² = 1. EDM's (Karras et al. 2022, arXiv 2206.00364) are of the first kind, for x0 of the standard
deviation `sigma_data`, and mix sample and network's output to x0 by weights of their own.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from seecoder.base_model.schedulers import check_scheduler
from seecoder.checks import short_repr
from seecoder.sampling.randomness import Randomness

_TINY_ALPHA = 1e-3  # below it (zero terminal signal-to-noise ratio) noise says nothing about x0
_BETAS = (0.00085, 0.012, 1000)  # Stable Diffusion's, linear in their roots


def check_steps(scheduler: Any, num_inference_steps: int, eta: float) -> None:
    """Refuse a run that a scheduler cannot make, before anything else is done for it.

    Args:
        scheduler: Any diffusers scheduler; never changed.
        num_inference_steps: Steps of the whole trajectory.
        eta: DDIM's stochasticity in [0, 1].

    Raises:
        ValueError: What `Stepper` raises.
    """
    Stepper(
        scheduler, num_inference_steps, eta=eta, randomness=Randomness(torch.Generator(), 1), device=torch.device("cpu")
    )


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
        ValueError: If the scheduler is of another kind (flow matching), cannot make so many steps or does not take the
            schedule, or `eta` has no effect on it.
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
        check_scheduler(scheduler)
        self.name = type(scheduler).__name__
        self.prediction_type = str(scheduler.config.get("prediction_type", "epsilon"))
        self._scheduler = copy.deepcopy(scheduler)
        self._schedule: Mapping[str, Any] = schedule or {"num_inference_steps": num_inference_steps}
        self._check_schedule()
        self._device = device
        self._keywords = self._step_keywords(eta, randomness)
        self._is_edm = hasattr(scheduler, "precondition_outputs")
        self._sigma_data = float(scheduler.config["sigma_data"]) if self._is_edm else 1.0
        self.num_train_timesteps = int(scheduler.config["num_train_timesteps"])
        try:
            self.restart(0)
        except (ValueError, IndexError, ArithmeticError) as error:  # each scheduler has words of its own
            self._refuse_steps(" ".join(str(error).split()))
        self.timesteps: Sequence[torch.Tensor] = self._scheduler.timesteps.unbind()
        self.alphas_cumprod = self._alphas_cumprod()
        self.times = self._training_times()
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

    def _refuse_steps(self, reason: str) -> NoReturn:
        ((name, value),) = self._schedule.items()
        raise ValueError(
            f"`{name}`={short_repr(value)} must be a number of steps that {self.name} can make: {reason}. Use another "
            "number, or another scheduler."
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
        """Cumulative alpha (the fraction of the variance that is signal) at every step of the schedule.

        Raises:
            ValueError: If two steps lie at one noise level, or a step lies outside the schedule.
        """
        times = [float(time) for time in self.timesteps]
        sigmas = getattr(self._scheduler, "sigmas", None)
        if sigmas is None:
            table = self._scheduler.alphas_cumprod
            if max(times) >= len(table):
                self._refuse_steps(f"its first timestep would be {max(times):g} of 0 to {len(table) - 1}")
            if self.num_inference_steps > len(table):
                self._refuse_steps(f"it knows {len(table)} timesteps")
            found = [float(table[int(timestep)]) for timestep in times]
            if found[0] == 0.0 and self.prediction_type == "epsilon":
                raise ValueError(
                    f"`prediction_type`='epsilon' of {self.name} must be 'v_prediction' where the schedule begins "
                    "without any signal (`rescale_betas_zero_snr`). Use the scheduler that the base came with."
                )
            return found
        levels = [float(sigma) for sigma in sigmas[: len(times)]]
        order = self._scheduler.order
        if len(set(levels[::order])) < len(levels[::order]):
            self._refuse_steps("two of them would lie at one noise level")
        if hasattr(self._scheduler, "sigmas_interpol"):  # DPM2: a half step lies between two levels
            known = self._scheduler.log_sigmas.double().cpu().numpy()
            for index in range(1, len(levels), 2):
                levels[index] = float(np.exp(np.interp(times[index], range(len(known)), known)))
        return [1.0 / (1.0 + (level / self._sigma_data) ** 2) for level in levels]

    def _training_times(self) -> list[float]:
        """The training timestep of every step; where the network is told of noise levels, Stable Diffusion's for it."""
        if not self._is_edm and self._scheduler.config.get("timestep_type") != "continuous":
            return [float(time) for time in self.timesteps]
        low, high, count = _BETAS
        table = np.cumprod(1.0 - np.linspace(low**0.5, high**0.5, count) ** 2)
        scale = self.num_train_timesteps / count
        return [float(time) * scale for time in np.interp(-np.log(self.alphas_cumprod), -np.log(table), range(count))]

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
            ValueError: If the scheduler cannot start inside its trajectory (PNDM's Runge-Kutta-like first steps).
        """
        if index > 0 and hasattr(self._scheduler, "prk_timesteps"):
            raise ValueError(
                f"`scheduler`={self.name} cannot start inside its trajectory, which this run needs. Use "
                "DDIMScheduler.from_config(scheduler.config) or another scheduler without a warm-up."
            )
        self._scheduler.set_timesteps(**self._schedule, device=self._device)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(index)

    def is_boundary(self, index: int) -> bool:
        """Whether step `index` begins a whole step (two-evaluation schedulers such as Heun have half steps)."""
        return index % self.order == 0

    def whole_step(self, index: int) -> int:
        """The last step from `index` backwards that begins a whole step."""
        return index - index % self.order

    def scale_input(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """What the network sees of `latents` at step `index`; linear in `latents`."""
        return self._scheduler.scale_model_input(latents, self.timesteps[index])

    def coefficients(self, index: int) -> tuple[float, float]:
        """(alpha, sigma) at step `index`: a sample there is alpha * x0 + sigma * noise."""
        alpha_cumprod = self.alphas_cumprod[index]
        if self.variance_exploding:
            return 1.0, self._sigma_data * ((1.0 - alpha_cumprod) / alpha_cumprod) ** 0.5
        return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5

    def alpha_after(self, index: int) -> float:
        """Factor on the clean latents in the sample that step `index` gives."""
        return self.coefficients(index + 1)[0] if index + 1 < len(self) else 1.0

    def _x0_weights(self, index: int) -> tuple[float, float]:
        """Weights of the sample and of the network's output in the predicted x0 of step `index`."""
        alpha, sigma = self.coefficients(index)
        signal = self.alphas_cumprod[index]
        if self.prediction_type == "sample":
            return 0.0, 1.0
        if self._is_edm:  # Karras et al. 2022, table 1: c_skip and c_out; diffusers' v has the other sign
            sign = 1.0 if self.prediction_type == "epsilon" else -1.0
            return signal, sign * self._sigma_data * (1.0 - signal) ** 0.5
        if self.prediction_type == "epsilon":
            return 1.0 / alpha, -sigma / alpha
        return signal if self.variance_exploding else alpha, -((1.0 - signal) ** 0.5)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """The sample of step `index` made of these clean latents and this unit-variance noise."""
        alpha, sigma = self.coefficients(index)
        return alpha * x0 + sigma * noise

    def predict_x0(self, output: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The clean latents that the network's `output` implies for the sample `latents` of step `index`."""
        of_sample, of_output = self._x0_weights(index)
        return of_sample * latents + of_output * output

    def carry_over(self, output: torch.Tensor, seen: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Turn a prediction about one sample into a prediction about another that has the same noise.

        A network that saw a filtered sample (DemoFusion's blurred lattices) predicted the noise in that sample. Noise
        predictions hold for the other sample as they are; others are computed anew. Where there is (almost) no signal
        left x0 is kept in place of the noise, which says nothing about x0 there.

        Args:
            output: What the network predicted about `seen`, (B, C, H, W): noise, v or sample.
            seen: The sample that the network saw.
            latents: The sample that the result is about.
            index: The step.
        """
        if self.prediction_type == "epsilon" and not self._is_edm:
            return output
        of_sample, of_output = self._x0_weights(index)
        kept = 0.0 if self.alphas_cumprod[index] < _TINY_ALPHA**2 else 1.0 / self.coefficients(index)[0]
        return output + (of_sample - kept) / of_output * (seen - latents)

    def step(self, output: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """One step of the scheduler on the whole sample: from step `index` to the next noise level."""
        return self._scheduler.step(output, self.timesteps[index], latents, **self._keywords)[0]

"""Exponential moving average of trained weights only.

Ours, because Lightning's own average deep-copies the whole module, frozen UNet included, and loses its weights under
DeepSpeed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.settings import EmaSettings


class Ema:
    """Float32 averages of named parameters.

    Args:
        named_parameters: What to average; buffers are not averaged.
        settings: Decay and its warm-up.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], settings: EmaSettings) -> None:
        self.settings = settings
        self.updates = 0
        self.parameters = dict(named_parameters)
        self.averages = {name: weight.detach().float().clone() for name, weight in self.parameters.items()}

    def decay(self) -> float:
        """Decay of the next update."""
        if not self.settings.warmup:
            return self.settings.decay
        return min(self.settings.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present weights; once for each optimizer step."""
        weights = [weight.detach().float() for weight in self.parameters.values()]
        self.to(weights[0].device)
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - self.decay())
        self.updates += 1

    def to(self, device: torch.device) -> None:
        """Move the averages, for instance after loading a checkpoint on the CPU."""
        if next(iter(self.averages.values())).device != device:
            self.averages = {name: average.to(device) for name, average in self.averages.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the averages in place of the weights, which come back bit-identical, exceptions included."""
        saved = [weight.detach().clone() for weight in self.parameters.values()]
        self._copy(self.averages.values())
        try:
            yield
        finally:
            self._copy(saved)

    @torch.no_grad()
    def _copy(self, values: Iterable[Tensor]) -> None:
        for weight, value in zip(self.parameters.values(), values, strict=True):
            weight.copy_(value)

    def state_dict(self) -> dict[str, object]:
        """Averages and the count of updates; plain tensors and numbers."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: The names differ from those of the module's trained parameters.
        """
        different = sorted(set(state["averages"]) ^ set(self.averages))
        if different:
            raise ValueError(
                f"{len(different)} averaged weights differ between checkpoint and module, first: {different[:3]}"
            )
        self.updates = int(state["updates"])
        for name, average in state["averages"].items():
            self.averages[name] = average.float().clone()


class OptimizerAverage(Ema):
    """The average that an optimizer keeps itself, as schedule-free ones do: seen in their mode "eval".

    Defazio et al., "The Road Less Scheduled", arXiv 2405.15682, eq. 3. Changing modes moves weights and rounds them, so
    the weights that are trained on are put back as they were: how often one looks must not change a training.

    Args:
        named_parameters: What the optimizer moves.
        optimizer: It is in its mode "train" but for the time of a look.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Any) -> None:
        self.parameters, self.optimizer, self.updates = dict(named_parameters), optimizer, 0
        optimizer.train()

    def update(self) -> None:
        """Nothing: the optimizer's step did it."""

    @property
    def averages(self) -> dict[str, Tensor]:
        """Averages by name."""
        saved = [weight.detach().clone() for weight in self.parameters.values()]
        self.optimizer.eval()
        found = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.optimizer.train()
        self._copy(saved)
        return found

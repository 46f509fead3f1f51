"""Seconds of a long sampling run from a few of its network calls: some of each kind are timed, all are counted."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 1  # calls of a kind that choose kernels and fetch memory


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], Any], device: torch.device, repetitions: int) -> float:
    """Median time of a piece of work, after one call that is not counted."""
    found = []
    for _ in range(repetitions + WARM_UP):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[WARM_UP:])


class TimedNetwork:
    """A denoiser that runs the UNet for a few calls of each kind, and predicts zeros in the others.

    No method decides by what the network predicts, so the calls are those of a whole run.

    Args:
        unet: A diffusers UNet; methods may patch it.
        calls: How many calls of a kind are timed, besides the first.
    """

    def __init__(self, unet: Any, calls: int) -> None:
        self._unet = unet
        self._calls = calls
        # By kind, calls that take the same time: of one shape, with the network's layers in one state.
        self._counts: Counter[Any] = Counter()
        self._timed: dict[Any, list[float]] = defaultdict(list)
        self._cells = 0
        self.spent = 0.0

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor, **conditions: Any) -> Tensor:
        """The UNet's output (N, C, h, w), or zeros."""
        kind = tuple(latents.shape), layer_state(self._unet)
        self._counts[kind] += 1
        self._cells += latents.shape[0] * latents.shape[2] * latents.shape[3]
        if len(self._timed[kind]) >= self._calls + WARM_UP:
            return torch.zeros_like(latents)
        synchronise(latents.device)
        started = time.perf_counter()
        output = self._unet(latents, timestep, encoder_hidden_states=context, return_dict=False, **conditions)[0]
        synchronise(latents.device)
        self._timed[kind].append(time.perf_counter() - started)
        self.spent += self._timed[kind][-1]
        return output

    @property
    def seconds(self) -> float:
        """Seconds that all calls would have taken, by the median of the timed ones of each kind."""
        medians = {kind: statistics.median(timed[WARM_UP:] or timed) for kind, timed in self._timed.items()}
        return sum(count * medians[kind] for kind, count in self._counts.items())

    def evaluations(self, native_side: int) -> float:
        """Passes over one native window, both branches of guidance together; larger views count by their area."""
        return self._cells / native_side**2 / 2


def layer_state(network: nn.Module) -> int:
    """A number that changes when a patch changes a layer: what its convolutions compute, its hooks or its forward."""
    return hash(
        tuple(
            (
                getattr(vars(module).get("_conv_forward"), "args", None),
                len(module._forward_pre_hooks),
                len(module._forward_hooks),
                "forward" in vars(module),
            )
            for module in network.modules()
        )
    )

"""A bad gradient must not destroy a run.

Ours, because no trainer at hand skips a step after the gradient is known, in all processes alike, and counts it;
Lightning's `detect_anomaly` only ends the run.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from data.nested import flat
from train.settings import GuardSettings


class TrainingStopped(RuntimeError):
    """The run cannot go on; its last checkpoint is from before the trouble."""


class Gradients:
    """The gradients of an optimizer step, whole on every process, as one process or data-parallel ones have them.

    Args:
        weights: What is trained.

    Attributes:
        tensors: The gradients that this process holds; may be changed in place.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.tensors = [weight.grad for weight in self.weights if weight.grad is not None]

    def norm(self) -> Tensor:
        """Global norm."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.tensors)).float())

    def drop(self) -> None:
        """Let the optimizer leave weights and moments as they are."""
        for weight in self.weights:
            weight.grad = None


class GradientGuard:
    """Clips gradients and throws away steps with a non-finite or exploding gradient or loss.

    Under data-parallel training the gradients were summed over processes before this looks at them, but a loss is each
    process's own (an infinite one may have finite gradients), so the processes exchange two numbers and take the same
    decision. A skipped step leaves weights and AdamW's moments as they are.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.mean_norm = 0.0
        self.mean_loss = 0.0
        self.folder: Path | None = None
        self.rank = 0
        self._samples: list[Any] = []
        self._losses: list[Tensor] = []

    def remember(self, batch: Any, loss: Tensor | None = None) -> None:
        """Note the samples of a micro-batch, to name them when the step is thrown away, and its loss."""
        keys = batch.get("keys") if isinstance(batch, dict) else None
        self._samples.extend(keys.tolist() if isinstance(keys, Tensor) else [])
        if loss is not None:
            self._losses.append(loss.detach().float())

    @torch.no_grad()
    def check(self, gradients: Gradients, step: int, clip_norm: float | None) -> Tensor:
        """Clip, or drop all gradients.

        Returns:
            Their global norm before clipping; zero for a skipped step.

        Raises:
            TrainingStopped: Too many steps in a row were bad.
        """
        norm = gradients.norm()
        mean = torch.stack(self._losses).mean() if self._losses else torch.zeros_like(norm)
        value, loss = torch.stack([norm, mean.to(norm.device)]).tolist()  # one look at the device
        is_bad, loss_of_all = self._decide(value, loss, norm.device)
        self._losses.clear()
        if is_bad:
            gradients.drop()
            self._note_skip(step, value, loss)
            return torch.zeros(())
        self.skipped_in_a_row = 0
        self.mean_norm = value if self.mean_norm == 0 else 0.98 * self.mean_norm + 0.02 * value
        self.mean_loss = loss_of_all if self.mean_loss == 0 else 0.98 * self.mean_loss + 0.02 * loss_of_all
        self._samples.clear()
        if clip_norm is not None and value > clip_norm:
            torch._foreach_mul_(gradients.tensors, clip_norm / (value + 1e-6))
        return norm

    def _decide(self, norm: float, loss: float, device: torch.device) -> tuple[bool, float]:
        """Whether any process found the step bad, and the mean loss of all processes."""
        is_bad = _is_bad(norm, self.mean_norm, self.settings.max_norm_ratio)
        is_bad = is_bad or _is_bad(loss, self.mean_loss, self.settings.max_loss_ratio)
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return is_bad, loss
        sums = torch.tensor([float(is_bad), loss if math.isfinite(loss) else 0.0], device=device)
        distributed.all_reduce(sums)
        count, total = sums.tolist()
        return count > 0, total / distributed.get_world_size()

    def _note_skip(self, step: int, norm: float, loss: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        figures = f"gradient norm {norm:.3g}, loss {loss:.3g}"
        print(f"step {step}: {figures}, step skipped ({self.skipped_in_a_row} in a row)", flush=True)
        if self.folder is not None:
            found = {"gradient_norm": repr(norm), "loss": repr(loss)}
            line = {"step": step, "rank": self.rank, **found, "samples": self._samples}
            try:
                with (self.folder / "skipped_steps.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                print(f"step {step}: {error}; NOT NOTED in skipped_steps.jsonl: {json.dumps(line)}", flush=True)
        self._samples.clear()
        if self.skipped_in_a_row > self.settings.max_skipped_in_a_row:
            raise TrainingStopped(
                f"{self.skipped_in_a_row} optimizer steps in a row had a bad gradient or loss, the last at "
                f"step {step}; checkpoints have waited since the first. Lower the learning rate or look at "
                "skipped_steps.jsonl."
            )

    def state_dict(self) -> dict[str, float]:
        """Counts and running mean."""
        counts = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return {**counts, "mean_norm": self.mean_norm, "mean_loss": self.mean_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.skipped = int(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.mean_norm = float(state["mean_norm"])
        self.mean_loss = float(state.get("mean_loss", 0.0))  # absent from checkpoints of earlier versions


def not_finite(tree: Mapping[str, Any]) -> list[str]:
    """Dotted names of the tensors that hold a NaN or an infinity, in nested dictionaries."""
    tensors = {name: value for name, value in flat(tree).items() if type(value) in (Tensor, nn.Parameter)}
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]


def _is_bad(value: float, mean: float, ratio: float | None) -> bool:
    return not math.isfinite(value) or (ratio is not None and mean > 0 and value > ratio * mean)

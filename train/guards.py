"""A bad gradient must not destroy a run."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.settings import GuardSettings


class TrainingStopped(RuntimeError):
    """The run cannot go on; its last checkpoint is from before the trouble."""


class GradientGuard:
    """Clips gradients and throws away steps with a non-finite or exploding gradient.

    Under data-parallel training the gradients were summed over processes before this looks at them, so a bad sample of
    one process shows in all of them and all take the same decision without another message. A skipped step leaves
    weights and AdamW's moments as they are.
    """

    def __init__(self, settings: GuardSettings):
        self.settings = settings
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.mean_norm = 0.0
        self.folder: Path | None = None
        self.rank = 0
        self._samples: list[Any] = []

    def remember(self, batch: Any) -> None:
        """Note the samples of a micro-batch, to name them when the step is thrown away."""
        keys = batch.get("keys") if isinstance(batch, dict) else None
        self._samples.extend(keys.tolist() if isinstance(keys, Tensor) else [])

    @torch.no_grad()
    def check(self, weights: list[nn.Parameter], step: int, clip_norm: float | None) -> Tensor:
        """Clip, or drop all gradients.

        Returns:
            The global norm before clipping; zero for a skipped step.

        Raises:
            TrainingStopped: Too many steps in a row were bad.
        """
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
        value = float(norm)
        if self._is_bad(value):
            self._skip(weights, step, value)
            return torch.zeros(())
        self.skipped_in_a_row = 0
        self.mean_norm = value if self.mean_norm == 0 else 0.98 * self.mean_norm + 0.02 * value
        self._samples.clear()
        if clip_norm is not None and value > clip_norm:
            torch._foreach_mul_(gradients, clip_norm / (value + 1e-6))
        return norm

    def _is_bad(self, norm: float) -> bool:
        if norm != norm or norm == float("inf"):
            return True
        ratio = self.settings.max_norm_ratio
        return ratio is not None and self.mean_norm > 0 and norm > ratio * self.mean_norm

    def _skip(self, weights: list[nn.Parameter], step: int, norm: float) -> None:
        for weight in weights:
            weight.grad = None
        self.skipped += 1
        self.skipped_in_a_row += 1
        print(f"step {step}: gradient norm {norm:.3g}, step skipped ({self.skipped_in_a_row} in a row)", flush=True)
        if self.folder is not None:
            line = {"step": step, "rank": self.rank, "gradient_norm": repr(norm), "samples": self._samples}
            with (self.folder / "skipped_steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._samples.clear()
        if self.skipped_in_a_row > self.settings.max_skipped_in_a_row:
            raise TrainingStopped(
                f"{self.skipped_in_a_row} optimizer steps in a row had a bad gradient, the last at step {step}; "
                "the newest checkpoint is from before. Lower the learning rate or look at skipped_steps.jsonl."
            )

    def state_dict(self) -> dict[str, float]:
        """Counts and running mean."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row, "mean_norm": self.mean_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.skipped = int(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.mean_norm = float(state["mean_norm"])

"""Base of data sources: which samples an optimizer step sees, a pure function of (seed, step).

Step s takes the global samples s * G ... (s + 1) * G - 1, where G is the global batch, whatever the number of
processes. Global sample k belongs to epoch k // n, and is number k % n in that epoch's shuffle of n samples.

A checkpoint says how many samples were used and what decides their order. A run that goes on with another global batch
begins with the first sample that was not used; one whose order has changed is refused, or begins a new epoch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from data.nested import differences
from data.shards.plan import derive_seed
from seecoder.checks import require, whole


@dataclass(frozen=True)
class Position:
    """Where this process stands.

    Attributes:
        first_step: Optimizer step at which the stream begins.
        last_step: Optimizer step before which it ends.
        accumulate: Micro-batches of a step.
        rank: This process.
        world_size: Processes.
        samples: Global samples that were used before `first_step`; None for as many steps of the present size.
    """

    first_step: int
    last_step: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    samples: int | None = None

    @property
    def batches(self) -> int:
        """Micro-batches of this process that are left."""
        return max(0, self.last_step - self.first_step) * self.accumulate

    def samples_before(self, batch_size: int, batch: int = 0) -> int:
        """Global samples that come before micro-batch `batch` of all processes, counted from `first_step` on."""
        before, at_once = self.samples, self.world_size * batch_size
        return (self.first_step * self.accumulate * at_once if before is None else before) + batch * at_once


class Shuffle:
    """Order of `count` samples in every epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed

    def keys(self, first: int, count: int) -> Tensor:
        """Epoch and sample number of the global samples first ... first + count - 1; (count, 2) int64."""
        positions = torch.arange(first, first + count)
        epochs = positions // self.count
        samples = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            samples[chosen] = _order(self.count, self.seed, epoch)[positions[chosen] % self.count]
        return torch.stack([epochs, samples], dim=1)


@lru_cache(2)  # a batch may straddle two epochs
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


@dataclass(frozen=True)
class StepStream:
    """Micro-batches of one process, from one optimizer step to another; a sized iterable, as Lightning wants.

    Attributes:
        keys: (first global sample, count) -> (count, 2) epochs and sample numbers.
        batch: (N, 2) keys -> a batch.
        batch_size: Samples of one micro-batch of one process.
        position: Where to begin and end.
    """

    keys: Callable[[int, int], Tensor]
    batch: Callable[[Tensor], Any]
    batch_size: int
    position: Position

    def __len__(self) -> int:
        return self.position.batches

    def __iter__(self) -> Iterator[Any]:
        own = self.position.rank * self.batch_size
        for batch in range(self.position.batches):
            first = self.position.samples_before(self.batch_size, batch) + own
            yield self.batch(self.keys(first, self.batch_size))


class StageData(LightningDataModule):
    """Base of data sources: micro-batches by optimizer step.

    Args:
        batch_size: Samples of one micro-batch of one process.
        seed: Seed of the order.

    Attributes:
        may_begin_epoch: Whether a run whose order of samples has changed begins a new epoch; it is refused otherwise.
        notes: What is odd about the data by a name, for `run.json` and the report.
        held_out_pixels: (N, 3, H, W) uint8 pictures for evaluation; N is 0 where there are none.
        held_out_columns: What else batches of the training have, of the same samples: of pairs `frames`.
    """

    may_begin_epoch = False
    held_out_pixels: Tensor

    def __init__(self, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        require("batch_size", batch_size, whole(1))
        self.batch_size = batch_size
        self.seed = seed
        self.notes: dict[str, str] = {}
        self.held_out_columns: Mapping[str, Tensor] = {}
        self._from_step, self._from_sample = 0, 0  # where a checkpoint was, or the run's start
        self._saved_order: dict[str, Any] | None = None
        self._order: dict[str, Any] = {}

    def held_out_batch(self, part: slice, device: torch.device) -> dict[str, Any]:
        """Held-out samples with the columns that a batch of the training has."""
        columns = {"pixels": self.held_out_pixels, **self.held_out_columns}.items()
        return {name: column[part].to(device) for name, column in columns}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, except the keys: they seed generators on the CPU, and reading them back would stall a GPU."""
        keys = batch.pop("keys")
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "keys": keys}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the global samples that were used, and what decides their order."""
        trainer: Any = self.trainer
        return {"step": trainer.global_step, "samples": self._samples_used(), "order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._from_step, self._from_sample = state_dict["step"], state_dict["samples"]
        self._saved_order = dict(state_dict["order"])

    def position(self, **order: Any) -> Position:
        """Where this process of the running training begins and ends.

        Args:
            **order: What decides the order of samples beside the seed; `samples` is the length of an epoch.

        Raises:
            ValueError: The checkpoint's samples had another order.
        """
        if order:
            self._order = {"seed": self.seed, **order}
            self._check_order(order["samples"])
        trainer: Any = self.trainer
        return Position(
            first_step=trainer.global_step,
            last_step=trainer.max_steps,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            samples=self._samples_used(),
        )

    def _check_order(self, length: int) -> None:
        """Compare with the checkpoint's order, of which `contents` is only said: caches beside pictures change it."""
        if not self._saved_order:
            return
        changes = {name: (was, now) for name, was, now in differences(self._saved_order, self._order)}
        told = ", ".join(f"{name}: {was} there, {now} now" for name, (was, now) in changes.items())
        if changes.keys() <= {"contents"}:
            if changes:
                print(f"note: the samples have their order, but other contents than at the checkpoint ({told})")
            return
        epoch, used = divmod(self._from_sample, self._saved_order["samples"])
        if not self.may_begin_epoch:
            raise ValueError(
                f"`data` must have the checkpoint's order of samples, but it has changed ({told}); {used:,} of the "
                f"{self._saved_order['samples']:,} samples of epoch {epoch} were used. Give the earlier data, or begin "
                "a new epoch here with --run.changed_order new_epoch."
            )
        self._from_sample, self._saved_order = (epoch + bool(used)) * length, None
        print(f"note: the order of samples has changed ({told}): epoch {epoch + bool(used)} begins here", flush=True)

    def _samples_used(self) -> int:
        trainer: Any = self.trainer
        batch = trainer.accumulate_grad_batches * trainer.world_size * self.batch_size
        return self._from_sample + (trainer.global_step - self._from_step) * batch

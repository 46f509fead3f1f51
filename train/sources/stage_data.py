"""Base of data sources: what a stage needs to know of where its samples come from."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from train.sources.stream import Position


class StageData(LightningDataModule):
    """Base of data sources: micro-batches by optimizer step.

    Args:
        batch_size: Samples of one micro-batch of one process.
        seed: Seed of the order.
    """

    def __init__(self, batch_size: int, seed: int = 0):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size`={batch_size} must be at least 1.")
        self.batch_size = batch_size
        self.seed = seed

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, except the keys: they seed generators on the CPU, and reading them back would stall a GPU."""
        keys = batch.pop("keys")
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "keys": keys}

    def position(self) -> Position:
        """Where this process of the running training begins and ends."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("Data is read by a trainer; there is none.")
        return Position(
            first_step=trainer.global_step,
            last_step=trainer.max_steps,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

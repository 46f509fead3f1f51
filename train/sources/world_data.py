"""The world as training data: a pool of scenes drawn once, kept in memory as bytes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.world.render import render
from data.world.scenes import Scenes, sample_scenes
from seecoder.checks import require, whole
from train.sources.held_out import HELD_OUT_SEED
from train.sources.stage_data import Shuffle, StageData, StepStream


class WorldPictures(StageData):
    """Pictures of the world and their scenes.

    A batch is a dict: `pixels` (N, 3, S, S) uint8, `keys` (N, 2) epoch and sample number, `scenes` a dict of the
    tensors of `Scenes`: Lightning moves no frozen dataclass to another device.

    Args:
        batch_size: Samples of one micro-batch of one process.
        pool_size: Scenes that an epoch has; each takes 3 * image_size² bytes.
        held_out: Scenes for evaluation, from another random stream.
        image_size: Height and width in pixels.
        seed: Seed of scenes and order.
    """

    def __init__(
        self, batch_size: int, pool_size: int = 40960, held_out: int = 256, image_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        require("pool_size", pool_size, whole(1))
        require("held_out", held_out, whole(1))
        self.pool_size = pool_size
        self.num_held_out = held_out
        self.image_size = image_size
        self.shuffle = Shuffle(pool_size, seed)
        self.pixels: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Draw the pool, once."""
        if self.pixels is not None:
            return
        self.scenes = sample_scenes(self.pool_size, self.seed)
        self.pixels = draw_bytes(self.scenes, self.image_size)
        self.held_out_scenes = sample_scenes(self.num_held_out, self.seed + HELD_OUT_SEED)
        self.held_out_pixels = draw_bytes(self.held_out_scenes, self.image_size)

    def train_dataloader(self) -> Any:
        """Micro-batches from the trainer's present step on."""
        return StepStream(self.shuffle.keys, self.batch, self.batch_size, self.position(samples=self.pool_size))

    def batch(self, keys: Tensor) -> dict[str, Any]:
        """Take samples by their keys."""
        if self.pixels is None:
            raise RuntimeError("`setup` was not called.")
        samples = keys[:, 1]
        return {"pixels": self.pixels[samples], "keys": keys, "scenes": vars(self.scenes[samples])}


def draw_bytes(scenes: Scenes, size: int) -> Tensor:
    """Draw scenes as (N, 3, size, size) uint8, in chunks so that no float copy of the pool exists."""
    pixels = torch.empty(len(scenes), 3, size, size, dtype=torch.uint8)
    start = 0
    for part in scenes.split(1024):
        pixels[start : start + len(part)] = (render(part, size) * 255).round_().to(torch.uint8)
        start += len(part)
    return pixels


def to_model_range(pixels: Tensor) -> Tensor:
    """Bytes to what autoencoders take: float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def chunks(count: int, size: int) -> Sequence[slice]:
    """Slices that cover `count` items, `size` at a time."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]

"""The world as training data: a pool of scenes drawn once, kept in memory as bytes, or encoded once, in 16 bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from data.shards.plan import derive_seed
from data.world.render import Style, render
from data.world.scenes import Scenes, joined, sample_scenes, sample_windows, seen_through, uniform
from seecoder.base_model.latents import encode_posterior
from seecoder.base_model.loading import load_frozen
from seecoder.checks import number, require, whole
from train.sources.held_out import HELD_OUT_SEED
from train.sources.stage_data import Shuffle, StageData, StepStream

WHOLE = torch.tensor([0.0, 0.0, 1.0])  # the window that is the frame


class WorldPictures(StageData):
    """Pictures of the world and their scenes: whole frames, and now and then a window of one, as under random crops.

    A batch is a dict: `pixels` (N, 3, S, S) uint8, `keys` (N, 2) epoch and sample number, `scenes` a dict of the
    tensors of `Scenes`: Lightning moves no frozen dataclass to another device. The layout of `scenes` is that of the
    picture; of a window it says where the object is, or would be outside of it. `size_ids` (N, 6) are what SDXL is told
    of crops.

    Args:
        batch_size: Samples of one micro-batch of one process.
        pool_size: Scenes that an epoch has; each takes 3 * image_size² bytes.
        held_out: Scenes for evaluation, from another random stream.
        image_size: Height and width in pixels.
        seed: Seed of scenes and order.
        crop_probability: With which a picture is a random window of its scene, drawn at 1 to 4 times the resolution.
        style: How pictures are drawn, "shaded" or "outlined".

    Attributes:
        pixels: (N, 3, S, S) uint8: the pool, then pictures of held-out scenes, then with crops windows of the same.
        frames: The N scenes that these show, or show windows of; `scenes` are these as seen through the windows.
        windows: (N, 3) top, left and side.
        held_out_pixels: Pictures of held-out scenes, (held_out, 3, S, S) uint8, all whole.
    """

    def __init__(
        self,
        batch_size: int,
        pool_size: int = 40960,
        held_out: int = 256,
        image_size: int = 64,
        seed: int = 0,
        crop_probability: float = 0.0,
        style: Style = "shaded",
    ) -> None:
        super().__init__(batch_size, seed)
        require("crop_probability", crop_probability, number(0.0, 1.0))
        require("pool_size", pool_size, whole(1))
        require("held_out", held_out, whole(1))
        self.pool_size = pool_size
        self.num_held_out = held_out
        self.image_size = image_size
        self.shuffle = Shuffle(pool_size, seed)
        self.crop_probability = crop_probability
        self.style: Style = style
        self.pixels: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Draw the pool, and behind it what is held out, once."""
        if self.pixels is not None:
            return
        held_out = sample_scenes(self.num_held_out, self.seed + HELD_OUT_SEED)
        windows = _some_whole(sample_windows(self.pool_size, self.seed), self.crop_probability, self.seed)
        drawn = [(sample_scenes(self.pool_size, self.seed), windows), (held_out, WHOLE.expand(len(held_out), 3))]
        if self.crop_probability:
            drawn.append((held_out, sample_windows(self.num_held_out, self.seed + HELD_OUT_SEED)))
        self.frames = joined([scenes for scenes, _ in drawn])
        self.windows = torch.cat([windows for _, windows in drawn])
        self.size_ids = window_size_ids(self.windows, self.image_size)
        self.scenes = seen_through(self.frames, self.windows)
        self.pixels = draw_bytes(self.frames, self.image_size, self.windows, self.style)
        self.held_out_scenes, self.held_out_pixels = held_out, self.pixels[self.pool_size :][: self.num_held_out]

    def train_dataloader(self) -> Any:
        """Micro-batches from the trainer's present step on."""
        return StepStream(self.shuffle.keys, self.batch, self.batch_size, self.position(samples=self.pool_size))

    def batch(self, keys: Tensor) -> dict[str, Any]:
        """Take samples by their keys."""
        if self.pixels is None:
            raise RuntimeError("`setup` was not called.")
        at = keys[:, 1]
        return {"keys": keys, "pixels": self.pixels[at], "scenes": vars(self.scenes[at]), "size_ids": self.size_ids[at]}


def draw_bytes(scenes: Scenes, size: int, windows: Tensor | None = None, style: Style = "shaded") -> Tensor:
    """Draw scenes, or windows of them, as (N, 3, size, size) uint8; in chunks, as the floats would not fit."""
    pixels = torch.empty(len(scenes), 3, size, size, dtype=torch.uint8)
    for part in chunks(len(scenes), 1024):
        drawn = render(scenes[part], size, windows=None if windows is None else windows[part], style=style)
        pixels[part] = (drawn * 255).round_().to(torch.uint8)
    return pixels


def window_size_ids(windows: Tensor, size: int) -> Tensor:
    """What SDXL's UNet is told of pictures that are windows of larger ones (Podell et al. 2023, section 2.2).

    Args:
        windows: (N, 3) top, left and side in fractions of the frame.
        size: Side of the windows' pictures in pixels.

    Returns:
        (N, 6) float32: height and width of the whole, top and left of the window in it, height and width of the window.
    """
    whole = size / windows[:, 2:]
    return torch.cat([whole, whole, windows[:, :2] * whole, torch.full_like(windows[:, :2], size)], dim=1).round()


def _some_whole(windows: Tensor, crop_probability: float, seed: int) -> Tensor:
    """Windows, all but a share of `crop_probability` replaced by the whole frame."""
    draws = uniform(derive_seed(seed, "crops"), np.arange(len(windows)), 1)
    whole = torch.from_numpy(draws >= crop_probability)
    return torch.where(whole, WHOLE, windows)


def to_model_range(pixels: Tensor) -> Tensor:
    """Bytes to what autoencoders take: float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def chunks(count: int, size: int) -> Sequence[slice]:
    """Slices that cover `count` items, `size` at a time."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class WorldLatents(WorldPictures):
    """The world's pictures as latent posteriors.

    A batch is that of `WorldPictures` with `mean` and `std` (N, C, h, w) of the scaled latent, half precision.

    Args:
        batch_size: Samples of one micro-batch of one process.
        vae: Folder of the trained autoencoder.
        held_out: Scenes for evaluation, from another random stream.
        **options: Those of `WorldPictures`.
    """

    def __init__(self, batch_size: int, vae: str, held_out: int = 512, **options: Any) -> None:
        super().__init__(batch_size, held_out=held_out, **options)
        if not (Path(vae) / "config.json").is_file():
            raise FileNotFoundError(
                f"`vae`={vae} is not a folder with an autoencoder; train one with world_autoencoder.yaml."
            )
        self.vae_folder = vae

    def setup(self, stage: str) -> None:
        """Draw and encode the pool, once."""
        if self.pixels is not None:
            return
        super().setup(stage)
        assert self.pixels is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vae = load_frozen(self.vae_folder, "vae", "float32", at_top=True).to(device)
        self.mean, self.std = encode_in_half(self.vae, self.pixels)

    def batch(self, keys: Tensor) -> dict[str, Any]:
        """Take samples by their keys."""
        return {**super().batch(keys), "mean": self.mean[keys[:, 1]], "std": self.std[keys[:, 1]]}

    def held_out_latents(self, keys: Tensor, device: torch.device, crops: bool = False) -> dict[str, Any]:
        """Take held-out samples by their keys, (N, 2): a batch of whole frames, or of windows of the same scenes."""
        first = self.pool_size + (self.num_held_out if crops else 0)
        batch = self.batch(keys + torch.tensor([0, first]))
        return {**move_data_to_device(batch, device), "keys": keys}


def encode_in_half(vae: Any, pixels: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latent.

    Args:
        vae: A frozen autoencoder.
        pixels: (N, 3, H, W) uint8.
        batch_size: Pictures encoded at once.

    Returns:
        Two (N, C, h, w) float16 tensors on the CPU.
    """
    means, stds = [], []
    with torch.autocast(vae.device.type, dtype=torch.bfloat16, enabled=vae.device.type == "cuda"):
        for part in chunks(len(pixels), batch_size):
            inputs = to_model_range(pixels[part]).to(vae.device).contiguous(memory_format=torch.channels_last)
            for column, values in zip((means, stds), encode_posterior(vae, inputs), strict=True):
                column.append(values.half().cpu().contiguous())
    return torch.cat(means), torch.cat(stds)

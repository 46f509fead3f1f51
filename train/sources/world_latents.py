"""Pictures encoded once: the frozen autoencoder's posterior, kept in memory in half precision."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from seecoder.base_model.latents import encode_posterior
from seecoder.base_model.loading import load_frozen
from train.sources.world_data import WorldPictures, chunks, to_model_range


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

"""How many pictures go through the networks together: as many as help, and as memory holds."""

import os
from typing import Any

import torch

from seecoder.base_model.facts import native_size
from seecoder.sampling.views import Size

_BRANCHES = 2  # of guidance
# What one row takes in the UNet, in numbers a cell for every channel of its outermost level: counted from the tensors
# alive at once, 26 in Stable Diffusion's, 16 in SDXL's, at any size.
_NUMBERS = 26
_MEMORY_FRACTION = 0.5  # of what is free; weights that are still to be moved and the autoencoder want some, too


def default_batch_size(unet: Any, size: Size, device: torch.device, view_batch_size: int = 16) -> int:
    """Choose how many pictures are sampled together.

    More native-sized windows than `view_batch_size` never go through the network at once, so more pictures would wait
    for each other without being faster.

    Args:
        unet: The denoiser.
        size: (height, width) of a picture in latent cells.
        device: Where it will be sampled.
        view_batch_size: Native-sized windows that go through the UNet at once.

    Returns:
        At least 1.
    """
    height, width = native_size(unet, size)
    native = height * width
    numbers = _BRANCHES * _NUMBERS * unet.config["block_out_channels"][0] * native
    held = _MEMORY_FRACTION * _free_bytes(device) / (numbers * next(unet.parameters()).element_size())
    pictures = min(view_batch_size, int(held)) * native // max(native, size[0] * size[1])
    return max(1, pictures)


def _free_bytes(device: torch.device) -> float:
    """Memory that is free on a device; of a device that cannot tell, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30

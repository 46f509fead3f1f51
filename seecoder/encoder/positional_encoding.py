"""The positional encoding of SeeCoder-PA: where on the picture a feature is, relative to the short side.

Released code at SHI-Labs/Prompt-Free-Diffusion@f4295fc (`PPE_MLP`); the paper (arXiv 2305.16223, Sec. 3.2) only names
it.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def position_features(
    height: int,
    width: int,
    num_frequencies: int,
    jitter: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Sines and cosines of the centred coordinates of a map's cells.

    Coordinates run from the centre of the map and are divided by its SHORT side on both axes, so that a cell is as wide
    as it is high; the short side spans one full turn at the lowest frequency. The frequencies are geometric from 1 to
    half the short side, the highest that the cells can carry.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        num_frequencies: Frequencies per axis.
        jitter: (..., 2) offsets (vertical, horizontal) in cells, in [-0.5, 0.5]; None for none.
        device: Where to compute.

    Returns:
        (..., height, width, 4 * num_frequencies) in float32: sin and cos of the rows, then sin and cos of the columns.
    """
    short_side = min(height, width)
    offset_y, offset_x = (0, 0) if jitter is None else jitter.to(device, torch.float32)[..., None].unbind(-2)
    rows = (torch.arange(height, device=device) + 0.5 - height / 2 + offset_y) / short_side * (2 * math.pi)
    columns = (torch.arange(width, device=device) + 0.5 - width / 2 + offset_x) / short_side * (2 * math.pi)
    frequencies = (short_side / 2) ** torch.linspace(0, 1, num_frequencies, dtype=torch.float32, device=device)
    phase_y = (rows[..., :, None] * frequencies)[..., :, None, :]  # (..., height, 1, num_frequencies)
    phase_x = (columns[..., :, None] * frequencies)[..., None, :, :]  # (..., 1, width, num_frequencies)
    shape = torch.broadcast_shapes(phase_y.shape, phase_x.shape)
    parts = [phase_y.sin(), phase_y.cos(), phase_x.sin(), phase_x.cos()]
    return torch.cat([part.expand(shape) for part in parts], dim=-1)


class PositionalEncoding(nn.Module):
    """Position features through a small MLP, computed in float32 whatever the dtype of the rest.

    The features turn fast: in bfloat16 the encoding would be off by a tenth of its size. The weights therefore stay in
    float32 when the model around them is cast to half precision, and autocast is switched off.

    The last weight starts at zero: a position-aware encoder begins as the encoder without positions.

    Args:
        dim: Width of the encoding.
        num_frequencies: Frequencies per axis.
    """

    def __init__(self, dim: int, num_frequencies: int = 20) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        # The dtype is given because loaders construct half-precision models under another default dtype.
        layers = [nn.Linear(width, dim, dtype=torch.float32) for width in (4 * num_frequencies, dim, dim)]
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(layers[-1].weight)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def forward(self, height: int, width: int, jitter: torch.Tensor | None = None) -> torch.Tensor:
        """Encode the cells of a map of `height` x `width`.

        Args:
            height: Rows of the map.
            width: Columns of the map.
            jitter: (2,) or (B, 2) offsets (vertical, horizontal) in cells, in [-0.5, 0.5]; None for none.

        Returns:
            (height * width, dim), or (B, height * width, dim) if `jitter` has a batch axis; float32.
        """
        device = next(self.parameters()).device
        # Shapes without numbers (meta) have no autocast to switch off.
        with nullcontext() if device.type == "meta" else torch.autocast(device_type=device.type, enabled=False):
            encoding = position_features(height, width, self.num_frequencies, jitter, device)
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    # `.float()` is free here; it matters only to loaders that put half-precision weights in by hand.
                    encoding = F.linear(encoding, layer.weight.float(), layer.bias.float())
                else:
                    encoding = layer(encoding)
            return encoding.flatten(-3, -2)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Follow every move to another device, but no cast to a narrower float (see the class)."""

        def move_only(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            narrowed = moved.is_floating_point() and moved.itemsize < tensor.itemsize
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(move_only, recurse)

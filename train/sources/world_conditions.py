"""What conditioners are told of the world's pictures beside their scenes: labelled boxes, words, holes, maps."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, one_hot

from data.shards.plan import derive_seed
from data.world.render import segment
from data.world.scenes import HUES, SHAPES, Scenes, uniform
from seecoder.base_model.latents import encode_posterior
from train.sources.world_data import WorldLatents, to_model_range

Column = Literal["labels", "caption", "masked", "low_resolution", "semantic_map"]


class WorldConditions(WorldLatents):
    """Latents with what conditioners read, from the true scenes; holes are a pure function of (seed, epoch, sample).

    Args:
        batch_size: Samples of one micro-batch of one process.
        vae: Folder of the trained autoencoder.
        columns: What a batch has beside that of `WorldLatents`. "labels": `labels` (N, 1), the object's shape and hue
            as one of 48 classes, -1 where none is seen, and `boxes` (N, 1, 4), top, left, bottom, right of what is seen
            in fractions of the picture. "caption": N sentences. "masked": `masked` (N, 1 + C, h, w), the mask of a hole
            in cells and the latents of the picture with a grey hole, as inpainting models read them, and `hole`
            (N, 1, S, S). "low_resolution": (N, 3, S / 4, S / 4) in [-1, 1]. "semantic_map": (N, 8, S, S), fractions of
            sky, of ground, and of the object in a channel for each shape.
        **options: Those of `WorldLatents`.
    """

    def __init__(self, batch_size: int, vae: str, columns: tuple[Column, ...], **options: Any) -> None:
        super().__init__(batch_size, vae, **options)
        self.columns = tuple(columns)

    def batch(self, keys: Tensor) -> dict[str, Any]:
        """Take samples by their keys."""
        batch, rows = super().batch(keys), keys[:, 1]
        return batch | self.told(keys, batch["pixels"], self.frames[rows], self.windows[rows])

    def told(self, keys: Tensor, pixels: Tensor, frames: Scenes, windows: Tensor) -> dict[str, Any]:
        """Make the columns of pictures of any size.

        Args:
            keys: (N, 2) epoch and sample, by which holes are drawn.
            pixels: (N, 3, S, S) bytes.
            frames: The scenes.
            windows: (N, 3), which parts of them the pictures are.
        """
        fractions = segment(frames, pixels.shape[-1], windows)
        boxes = bounding_boxes(fractions[:, 2] > 0.5)
        columns: dict[str, Any] = {}
        if "labels" in self.columns:
            labels = torch.where(boxes.any(1), frames.shape * len(HUES) + frames.hue, -1)
            columns |= {"labels": labels.unsqueeze(1), "boxes": boxes.unsqueeze(1)}
        if "caption" in self.columns:
            named = [frames.describe(row) for row in range(len(frames))]
            columns["caption"] = ["a {texture} {hue} {shape} on {background}".format(**one) for one in named]
        if "masked" in self.columns:
            draws = uniform(derive_seed(self.seed, "holes"), (keys[:, 0] * 2**32 + keys[:, 1]).abs().numpy(), 5)
            columns["hole"] = hole = holes(boxes, torch.from_numpy(draws).float(), pixels.shape[-1])
            inputs = (to_model_range(pixels) * (1 - hole)).to(self.vae.device)
            latents = encode_posterior(self.vae, inputs)[0].cpu()
            cells = interpolate(hole, latents.shape[-2:])  # a cell has the value of its first pixel, as in diffusers
            columns["masked"] = torch.cat([cells, latents], dim=1)
        if "low_resolution" in self.columns:
            columns["low_resolution"] = to_model_range(avg_pool2d(pixels.float(), 4).round_())
        if "semantic_map" in self.columns:
            shape = one_hot(frames.shape, len(SHAPES)).float()[:, :, None, None]
            columns["semantic_map"] = torch.cat([fractions[:, :2], fractions[:, 2:] * shape], dim=1)
        return columns


def bounding_boxes(covered: Tensor) -> Tensor:
    """Boxes around what is covered, (N, H, W) bool: (N, 4) top, left, bottom, right in fractions; zeros for nothing."""
    sides = []
    for lines in (covered.any(2), covered.any(1)):  # rows, columns
        first, behind = lines.int().argmax(1), lines.shape[1] - lines.flip(1).int().argmax(1)
        sides.append(torch.stack([first, behind], dim=1) / lines.shape[1])
    return torch.stack(sides, dim=2).flatten(1) * covered.flatten(1).any(1, keepdim=True)


def holes(boxes: Tensor, draws: Tensor, side: int) -> Tensor:
    """Rectangles to fill: one half of them hides the whole object, the other lies anywhere.

    Drawn by `draws` (N, 5), uniform in [0, 1), for objects in `boxes` (N, 4), zeros where there is none. The result is
    (N, 1, side, side) float32, 1 in the hole.
    """
    size, margin = 0.25 + 0.5 * draws[:, :2], 0.06 + 0.08 * draws[:, :2]
    corner = draws[:, 2:4] * (1 - size)
    around, anywhere = boxes + torch.cat([-margin, margin], dim=1), torch.cat([corner, corner + size], dim=1)
    hole = torch.where((draws[:, 4:] < 0.5) & boxes.any(1, keepdim=True), around, anywhere)
    top, left, bottom, right = hole.unsqueeze(2).unbind(1)
    at = (torch.arange(side) + 0.5) / side
    inside = ((at >= top) & (at < bottom)).unsqueeze(2) & ((at >= left) & (at < right)).unsqueeze(1)
    return inside.unsqueeze(1).float()

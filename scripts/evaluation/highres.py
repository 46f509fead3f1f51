"""What a sampling method does above the native size, in numbers: the reader's counts, detail, and what it cost.

All methods of a table are given the same scenes, context tokens and random streams, so that rows differ by the method
alone. Detail is compared with true renderings of the same scenes at the same size: counting alone rewards blur.

A panorama is one native height and several native widths. Its network is told everything but the background, so that
each window would choose one of its own: do the windows agree about it, what synchronisation is for?
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from data.world.reader.attributes import background_degrees
from data.world.reader.readings import rates, read
from data.world.reader.segmentation import saturated_mask
from data.world.render import render
from data.world.scenes import Scenes
from scripts.evaluation.counts import Sampling, sample_pictures
from seecoder.base_model.latents import decode_pixels, encode_posterior
from seecoder.evaluation.detail import spectrum_distance
from seecoder.sampling.recipe import NetworkMethod
from seecoder.sampling.sizes import resized

Factor = tuple[int, int]  # (rows, columns) in native sides


@contextmanager
def counted_windows(unet: torch.nn.Module, native_size: tuple[int, int]) -> Iterator[list[float]]:
    """Note for each call of a UNet inside the block how many native-sized windows went through it.

    Every picture and every guidance branch counts, and a larger view counts by its area.
    """
    windows: list[float] = []
    native = native_size[0] * native_size[1]

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        latents = inputs[0] if inputs else keywords["sample"]
        windows.append(latents.shape[0] * latents.shape[2] * latents.shape[3] / native)

    with unet.register_forward_pre_hook(hook, with_kwargs=True):
        yield windows


@contextmanager
def compiled(unet: Any, wanted: bool) -> Iterator[None]:
    """Run compiled code for a UNet inside the block; its weights, names and hooks stay as they are."""
    if not wanted:
        yield
        return
    unet.forward = torch.compile(unet.forward)
    try:
        with inductor_config.patch(freezing=True):  # weights are packed once for the whole cell
            yield
    finally:
        del unet.forward
        torch.compiler.reset()  # else the shapes of all blocks share one limit, past which nothing is compiled


@dataclass(frozen=True)
class Row:
    """One row of the table: how pictures come about.

    Attributes:
        label: Its name.
        methods: Sampling methods that are composed; none is plain sampling.
        source: "sampled"; "enlarged" are native samples, enlarged bicubically in latent space; "rendered" are true
            pictures, and "reconstructed" those behind the autoencoder: the most that any sample can reach.
        factors: The sizes it is there for; none is all.
        is_panorama: Whether the pictures are judged as panoramas.
    """

    label: str
    methods: Sequence[Any] = ()
    source: str = "sampled"
    factors: Sequence[Factor] = field(default_factory=tuple)
    is_panorama: bool = False

    @property
    def changes_network(self) -> bool:
        """Whether a method changes the UNet's layers while it samples: compiled code would not be that UNet's."""
        return any(isinstance(method, NetworkMethod) for method in self.methods)

    def fits(self, factor: Factor) -> bool:
        """Whether the row has a cell at this size."""
        return not self.factors or factor in self.factors


@torch.no_grad()
def pictures_of(row: Row, pipeline: Any, scenes: Scenes, context: Tensor, sampling: Sampling) -> Tensor:
    """The pictures of one cell, (N, 3, H, W) in [0, 1].

    Args:
        row: How they come about.
        pipeline: A `SeeCoderPipeline` of the world's base.
        scenes: N scenes.
        context: (N, tokens, width), what the network is told of them.
        sampling: Steps, guidance, seeds and size; height and width are needed.

    Raises:
        ValueError: The size is missing, or the row's source is unknown.
    """
    if sampling.height is None or sampling.width is None:
        raise ValueError("`sampling` has no `height` and `width`; a cell of the table needs both.")
    if row.source == "sampled":
        method = list(row.methods) or None
        return sample_pictures(pipeline, context, sampling, method=method)
    if row.source == "enlarged":
        # The baseline that has one object and no detail.
        native, cell = replace(sampling, height=None, width=None), pipeline.vae_scale_factor
        latents = sample_pictures(pipeline, context, native, output_type="latent").float()
        size = (sampling.height // cell, sampling.width // cell)
        large = resized(latents, size, mode="bicubic", align_corners=False)
        return torch.cat([decode_pixels(pipeline.vae, part) for part in large.split(sampling.batch_size)])
    if row.source not in ("rendered", "reconstructed"):
        raise ValueError(f"`source`={row.source!r} is unknown; choose sampled, enlarged, rendered or reconstructed.")
    rendered = torch.cat([render(part, sampling.height, sampling.width) for part in scenes.split(16)])
    if row.source == "rendered":
        return rendered
    latents = (encode_posterior(pipeline.vae, 2 * part - 1)[0] for part in rendered.split(sampling.batch_size))
    return torch.cat([decode_pixels(pipeline.vae, part) for part in latents])


def measure(
    row: Row, pipeline: Any, scenes: Scenes, context: Tensor, sampling: Sampling
) -> tuple[Tensor, dict[str, Any]]:
    """Make the pictures of a cell and count.

    Returns:
        The pictures, and numbers by name: those of `judged` or of `judged_panoramas`; "windows" and "seconds" for each
        picture.
    """
    started = time.perf_counter()
    native = pipeline.unet.config.sample_size
    with counted_windows(pipeline.unet, (native, native)) as windows:
        pictures = pictures_of(row, pipeline, scenes, context, sampling)
    seconds = time.perf_counter() - started
    numbers = judged_panoramas(pictures) if row.is_panorama else judged(pictures, scenes)
    numbers |= {"windows": sum(windows) / len(scenes), "seconds": seconds / len(scenes)}
    return pictures, numbers


def judged(pictures: Tensor, scenes: Scenes) -> dict[str, Any]:
    """What the reader counts on pictures, and how far their detail is from that of true ones.

    Returns:
        Numbers of `rates`; "fit", the mean overlap of the largest object with the best of the shapes' templates, 0 for
        a picture without one; "spectrum", decibels to true renderings; "each", how many objects each picture has.
    """
    height, width = pictures.shape[-2:]
    truth = torch.cat([render(part, height, width) for part in scenes.split(16)])
    readings = read(pictures)
    fit = sum(0.0 if item.main is None else item.main.fit for item in readings) / len(readings)
    each = [reading.num_objects for reading in readings]
    return rates(readings, scenes) | {"fit": fit, "spectrum": spectrum_distance(pictures, truth), "each": each}


def hue_spread(degrees: Sequence[float]) -> float:
    """Mean difference between two of the hues in degrees, 0 to 180; 90 for hues that know nothing of each other."""
    values = np.asarray(degrees)
    first, second = np.triu_indices(len(values), k=1)
    return float(np.abs((values[first] - values[second] + 180) % 360 - 180).mean())


def seam_error(image: Tensor) -> float:
    """Mean step between the last and the first column relative to that between neighbours; 1 is a closed loop."""
    steps = (image.roll(-1, dims=-1) - image).abs().mean(dim=(0, 1))
    return float(steps[-1] / steps[:-1].mean().clamp(min=1e-8))


def native_windows(panorama: Tensor) -> list[Tensor]:
    """The (3, H, H) pictures that lie side by side in a (3, H, W) panorama."""
    side = panorama.shape[-2]
    return [panorama[..., left : left + side] for left in range(0, panorama.shape[-1] - side + 1, side)]


def judged_panoramas(panoramas: Tensor) -> dict[str, float]:
    """Means over panoramas (N, 3, H, W) in [0, 1].

    Returns:
        "hue_spread" between windows in degrees, "objects" for each native window, "seam" at the loop (1: none),
        "horizons".
    """
    spreads = []
    for panorama in panoramas:
        images = [window.numpy() for window in native_windows(panorama)]
        spreads.append(hue_spread([background_degrees(image, saturated_mask(image)) for image in images]))
    opened = [_opened(panorama) for panorama in panoramas]
    readings = read(opened)
    windows = panoramas.shape[-1] / panoramas.shape[-2]
    return {
        "hue_spread": float(np.mean(spreads)),
        "objects": float(np.mean([reading.num_objects for reading in readings])) / windows,
        "seam": float(np.mean([seam_error(panorama) for panorama in panoramas])),
        "horizons": float(np.mean([reading.num_horizons for reading in readings])),
    }


def _opened(panorama: Tensor) -> Tensor:
    """The loop cut where there is least of an object, so that none counts twice."""
    covered = saturated_mask(panorama.numpy()).sum(axis=0)
    return panorama.roll(-int(covered.argmin()), dims=-1)

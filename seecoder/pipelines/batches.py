"""Many pictures, a batch at a time: as many go through the networks together as help, and as memory holds."""

import os
from collections.abc import Callable, Iterator, Sequence
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


class Batches:
    """Makes pictures in batches; a picture is the same alone and in a batch, up to rounding.

    Args:
        pipe: The pipeline.
        given: Arguments of its calls that are the same for all pictures.
        size: Pictures of a batch.
        watch: Called with the places of a batch before it is made; gives further arguments, such as callbacks.
    """

    def __init__(
        self, pipe: Any, given: dict[str, Any], size: int, watch: Callable[[Sequence[int]], dict[str, Any]]
    ) -> None:
        self._pipe, self._given, self._size, self._watch = pipe, given, size, watch
        self._contexts: dict[int, dict[str, torch.Tensor]] = {}  # by the identity of what they were made of

    def run(self, entries: Sequence[tuple[dict[str, Any], int]]) -> Iterator[tuple[int, Any, list[str]]]:
        """Make all of them.

        Args:
            entries: Of each picture what stands for its pictures in a call, `image` or a ready `context` (the same
                dictionary for all that share it, which is encoded once), and its seed.

        Yields:
            The place of each picture, the picture as soon as its batch is done, and the notes of the pipeline.
        """
        for start in range(0, len(entries), self._size):
            yield from self._make(entries, range(len(entries))[start : start + self._size])

    def _make(
        self, entries: Sequence[tuple[dict[str, Any], int]], places: Sequence[int]
    ) -> Iterator[tuple[int, Any, list[str]]]:
        images, notes = [], []
        try:
            contexts = [self._context(entries[place][0]) for place in places]
            output = self._pipe(
                **{name: torch.cat([context[name] for context in contexts]) for name in contexts[0]},
                **self._given,
                generator=[torch.Generator().manual_seed(entries[place][1]) for place in places],
                **self._watch(places),
            )
            images, notes = output.images, output.notes
        except RuntimeError as error:
            if len(places) == 1:
                raise
            notes = [f"{len(places)} pictures at once: {error} They were made one by one."]
        if notes and not images:  # what is wrong with one picture must not cost the others
            for place in places:
                for made, image, said in self._make(entries, [place]):
                    yield made, image, notes + said
            return
        for place, image in zip(places, images, strict=True):
            yield place, image, notes

    def _context(self, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        if "image" not in arguments:
            return arguments
        if id(arguments) not in self._contexts:  # its pictures were reduced when they were opened
            self._contexts[id(arguments)] = self._pipe.context_arguments(arguments["image"], image_size=None)
        return self._contexts[id(arguments)]

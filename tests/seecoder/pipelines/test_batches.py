"""Pictures are sampled together, as many as helps and as memory holds, and are what they are alone."""

from types import SimpleNamespace

import pytest
import torch

from seecoder.pipelines import batches
from seecoder.pipelines.batches import Batches, default_batch_size

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    def set_gib(gib):
        monkeypatch.setattr(batches, "_free_bytes", lambda device: gib * 2**30)

    return set_gib


def test_native_pictures_fill_the_windows_that_go_through_at_once(tiny_unet, free):
    free(64)
    assert default_batch_size(tiny_unet, (8, 8), CPU, 16) == 16
    assert default_batch_size(tiny_unet, (8, 8), CPU, 3) == 3


def test_large_pictures_count_by_their_area(tiny_unet, free):
    free(64)
    assert default_batch_size(tiny_unet, (16, 16), CPU, 16) == 4
    assert default_batch_size(tiny_unet, (64, 64), CPU, 16) == 1
    assert default_batch_size(tiny_unet, (4, 4), CPU, 16) == 16


def test_memory_limits_them(tiny_unet, free):
    one = 2 * 26 * 8 * 64 * 4  # bytes: branches, numbers, channels, cells, float32
    free(2 * 5 * one / 2**30)
    assert default_batch_size(tiny_unet, (8, 8), CPU, 16) == 5
    free(0)
    assert default_batch_size(tiny_unet, (8, 8), CPU, 16) == 1


def test_this_machine_has_memory():
    assert batches._free_bytes(CPU) > 2**20


class FakePipeline:
    """Counts calls; fails for batches that hold the seed 13, and makes pictures that are their seeds."""

    def __init__(self):
        self.calls, self.encoded = [], []

    def context_arguments(self, image, image_size):
        self.encoded.append(image)
        return {"context": torch.full((1, 2, 4), float(image))}

    def __call__(self, *, context, generator, **given):
        seeds = [entry.initial_seed() for entry in generator]
        self.calls.append((context[:, 0, 0].tolist(), seeds))
        if 13 in seeds:
            raise RuntimeError("the denoised latents contain NaN.")
        return SimpleNamespace(images=seeds, notes=["a note"])


def run_of(pipe, size, seeds):
    contexts = [{"image": 1}, {"image": 2}]
    entries = [(context, seed) for context in contexts for seed in seeds]
    return Batches(pipe, {}, size, lambda places: {"places": list(places)}).run(entries)


def test_contexts_and_seeds_are_batched_together_and_each_picture_is_encoded_once():
    pipe = FakePipeline()
    made = list(run_of(pipe, 4, [5, 6, 7]))
    assert pipe.calls == [([1, 1, 1, 2], [5, 6, 7, 5]), ([2, 2], [6, 7])]
    assert pipe.encoded == [1, 2]
    assert made == [(place, seed, ["a note"]) for place, seed in enumerate((5, 6, 7, 5, 6, 7))]


def test_each_picture_is_given_before_the_next_batch_begins():
    pipe = FakePipeline()
    next(run_of(pipe, 2, [5, 6, 7]))
    assert len(pipe.calls) == 1


def test_a_picture_that_fails_does_not_cost_those_of_its_batch():
    run = run_of(FakePipeline(), 8, [5, 6, 13])
    first = next(run)
    assert first[:2] == (0, 5)
    assert first[2] == ["6 pictures at once: the denoised latents contain NaN. They were made one by one.", "a note"]
    assert next(run)[1] == 6
    with pytest.raises(RuntimeError, match="NaN"):
        next(run)

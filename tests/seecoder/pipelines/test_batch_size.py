"""How many pictures are sampled together: what helps, and what memory holds."""

import pytest
import torch

from seecoder.pipelines import batch_size
from seecoder.pipelines.batch_size import default_batch_size

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    def set_gib(gib):
        monkeypatch.setattr(batch_size, "_free_bytes", lambda device: gib * 2**30)

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
    assert batch_size._free_bytes(CPU) > 2**20

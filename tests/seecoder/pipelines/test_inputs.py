"""The pictures of a call come in any form."""

import numpy as np
import pytest
import torch

from seecoder.encoder.context import ImageSet
from seecoder.pipelines.inputs import as_image_sets, control_pixels, start_pixels


def test_every_form_of_image_becomes_sets():
    first, second = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    counts = {
        "one": ([first], as_image_sets(first)),
        "several": ([first, second], as_image_sets([first, second])),
        "stack": ([first, second], as_image_sets(torch.stack([first, second]))),
        "array": ([first], as_image_sets(np.zeros((1, 32, 32, 3), np.uint8))),
    }
    for pictures, sets in counts.values():
        assert [len(entry.images) for entry in sets] == [1] * len(pictures)
    together, alone = as_image_sets([[first, second], ImageSet([second])], [3, 1])
    assert (len(together.images), together.weights) == (2, [3, 1])
    assert (len(alone.images), alone.weights) == (1, None)


def test_a_start_picture_is_never_enlarged_and_fits_the_cells():
    assert start_pixels(torch.rand(3, 16, 24), (64, 96), 8).shape == (1, 3, 16, 24)
    assert start_pixels(torch.rand(3, 128, 192), (64, 96), 8).shape == (1, 3, 64, 96)
    assert start_pixels(torch.rand(3, 17, 25), (64, 96), 8).shape == (1, 3, 16, 24)


def test_control_pictures_are_one_or_one_each():
    picture = torch.rand(3, 16, 16)
    assert control_pixels(picture, 3).shape == (1, 3, 16, 16)
    assert control_pixels([picture] * 3, 3).shape == (3, 3, 16, 16)
    for wrong in ([picture] * 2, [picture, picture, picture[:, :8]]):
        with pytest.raises(ValueError, match="give one for all, or one each, of one size"):
            control_pixels(wrong, 3)

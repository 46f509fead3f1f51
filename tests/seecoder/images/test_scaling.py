"""The size at which an encoder sees a picture."""

import pytest
import torch

from seecoder.images.gate import ImageError
from seecoder.images.scaling import encodable, limit_area


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((300, 400), (55, 74)),  # 64 * 64 pixels at 3:4
        ((64, 64), (64, 64)),
        ((32, 128), (32, 128)),  # as many pixels as the square
        ((40, 50), (40, 50)),  # never enlarged
        ((40, 4000), (32, 640)),  # the shorter side does not fall below 32
        ((20, 4000), (20, 905)),  # nor is it enlarged to 32
    ],
)
def test_limit_area(size, seen):
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    found = limit_area(picture, 64)
    assert tuple(found.shape) == (3, *seen)
    assert found.min() >= 0
    assert found.max() <= 1
    if size == seen:
        assert found is picture
    assert limit_area(picture, None) is picture


def test_limit_area_keeps_a_smooth_picture():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 240), torch.linspace(0, 1, 320), indexing="ij")
    found = limit_area(torch.stack([rows, columns, (rows + columns) / 2]), 64)
    centres = (torch.arange(74) + 0.5) / 74
    # Away from the border, where the bicubic kernel sees no edge, a ramp stays a ramp.
    torch.testing.assert_close(found[1, 20, 5:-5], ((centres * 320 - 0.5) / 319)[5:-5], atol=1e-4, rtol=0)


def test_limit_area_refuses_sizes_no_encoder_takes():
    with pytest.raises(ValueError, match="`image_size`=31"):
        limit_area(torch.rand(3, 64, 64), 31)


def test_a_picture_too_small_to_encode_is_named():
    assert encodable("a.png", torch.rand(3, 32, 40), 512).shape == (3, 32, 40)
    assert encodable("a.png", torch.rand(3, 100, 100), 50).shape == (3, 50, 50)
    with pytest.raises(ImageError, match=r"`a\.png`: its 31 x 40 pixels are too few .* at least 32 a side"):
        encodable("a.png", torch.rand(3, 40, 31), 512)

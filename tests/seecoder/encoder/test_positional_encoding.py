import math

import pytest
import torch
from torch import nn

from seecoder.encoder.positional_encoding import PositionalEncoding, position_features


def _reference(height: int, width: int, count: int, dy: float = 0.0, dx: float = 0.0) -> torch.Tensor:
    """The definition, cell by cell in double precision."""
    short = min(height, width)
    out = torch.zeros(height, width, 4 * count, dtype=torch.float64)
    frequencies = [(short / 2) ** (i / (count - 1)) for i in range(count)]
    for i in range(height):
        for j in range(width):
            y = (i + 0.5 - height / 2 + dy) / short * 2 * math.pi
            x = (j + 0.5 - width / 2 + dx) / short * 2 * math.pi
            values = [f(c * w) for c in (y, x) for f in (math.sin, math.cos) for w in frequencies]
            out[i, j] = torch.tensor(values, dtype=torch.float64)
    return out


def _encoding(dim: int = 16) -> PositionalEncoding:
    torch.manual_seed(0)
    encoding = PositionalEncoding(dim, num_frequencies=20)
    nn.init.normal_(encoding.mlp[4].weight, std=0.3)
    return encoding


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 7), (16, 5), (1, 1), (1, 3)])
def test_features_are_the_definition(height, width):
    features = position_features(height, width, 20)
    torch.testing.assert_close(features.double(), _reference(height, width, 20), rtol=0, atol=2e-5)


def test_jitter_moves_the_coordinates_and_takes_a_batch():
    jitter = torch.tensor([[0.25, -0.5], [0.0, 0.0]])
    features = position_features(3, 5, 6, jitter)
    assert features.shape == (2, 3, 5, 24)
    torch.testing.assert_close(features[0].double(), _reference(3, 5, 6, 0.25, -0.5), rtol=0, atol=1e-5)
    assert torch.equal(features[1], position_features(3, 5, 6))


def test_mirroring_the_columns_flips_the_sign_of_their_sines_alone():
    features = position_features(4, 6, 5)
    sin_y, cos_y, sin_x, cos_x = features.split(5, dim=-1)
    mirrored = features.flip(1).split(5, dim=-1)
    torch.testing.assert_close(mirrored[2], -sin_x)
    for same, part in ((sin_y, 0), (cos_y, 1), (cos_x, 3)):
        torch.testing.assert_close(mirrored[part], same)


def test_a_new_encoding_is_zero_everywhere():
    assert not PositionalEncoding(16)(5, 7).any()


def test_shape_and_order_are_those_of_flattened_maps():
    encoding = _encoding()
    out = encoding(3, 5)
    assert out.shape == (15, 16)
    features = position_features(3, 5, 20)
    torch.testing.assert_close(out[7], encoding.mlp(features[1, 2]))
    assert encoding(3, 5, torch.zeros(4, 2)).shape == (4, 15, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_to_half_precision_leaves_it_alone(dtype):
    encoding = _encoding()
    before = encoding(9, 12)
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "encoding": encoding}).to(dtype)
    assert model["linear"].weight.dtype == dtype
    assert encoding.mlp[0].weight.dtype == torch.float32
    assert torch.equal(encoding(9, 12), before)


def test_autocast_and_narrow_weights_change_little():
    encoding = _encoding()
    before = encoding(9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoding(9, 12), before)
    # What a loader does that assigns half-precision tensors: the arithmetic stays in float32 even so.
    for layer in (0, 2, 4):
        encoding.mlp[layer].weight = nn.Parameter(encoding.mlp[layer].weight.bfloat16())
    assert encoding(9, 12).dtype == torch.float32
    assert (encoding(9, 12) - before).norm() / before.norm() < 0.01


def test_in_plain_bfloat16_it_would_be_useless():
    """Control: what the float32 rule protects from."""
    features = position_features(64, 64, 20)  # the finest level of a picture of 512 pixels
    coordinates = (torch.arange(64).bfloat16() + 0.5 - 32) / 64 * (2 * math.pi)
    frequencies = 32 ** torch.linspace(0, 1, 20).bfloat16()
    narrow = (coordinates[:, None] * frequencies).sin()
    assert (narrow.float() - features[:, 0, :20]).norm() / features[:, 0, :20].norm() > 0.05


def test_widening_and_moving_work():
    encoding = _encoding().double()
    assert encoding.mlp[0].weight.dtype == torch.float64
    assert encoding(3, 3).dtype == torch.float32
    assert PositionalEncoding(8).to("meta").mlp[0].weight.is_meta

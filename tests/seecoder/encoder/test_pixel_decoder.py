import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seecoder.encoder.pixel_decoder import Decoder

CHANNELS = (4, 6, 8)
SIZES = ((6, 4), (3, 2), (2, 1))


def _decoder(attention: str, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(CHANNELS, 32, 4, 2, 20, dropout, attention)  # type: ignore[arg-type]
    for parameter in decoder.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.7)
    return decoder.double().eval()


def _maps(batch: int) -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [torch.randn(batch, c, *size, dtype=torch.float64) for c, size in zip(CHANNELS, SIZES, strict=True)]


def _torch_attention(layer: nn.Module) -> nn.MultiheadAttention:
    ours = layer.attention
    oracle = nn.MultiheadAttention(32, 4, dtype=torch.float64).eval()  # sequence first, as the published code builds it
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        oracle.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        oracle.out_proj.load_state_dict(ours.out.state_dict())
    return oracle


def _reference(decoder: Decoder, maps: list[torch.Tensor], over_batch: bool) -> list[torch.Tensor]:
    """The published forward in plain steps; `over_batch` feeds (B, N, C) to a sequence-first attention, as it does."""
    batch = maps[0].shape[0]
    sequence = []
    for row, index in enumerate((2, 1, 0)):  # coarsest first
        conv, norm = decoder.input_projections[index].conv, decoder.input_projections[index].norm
        projected = F.group_norm(F.conv2d(maps[index], conv.weight, conv.bias), 32, norm.weight, norm.bias)
        sequence.append(projected.flatten(2).transpose(1, 2) + decoder.level_embedding[row])
    x = torch.cat(sequence, dim=1)
    for layer in decoder.layers:
        attention = _torch_attention(layer)
        tokens = x if over_batch else x.transpose(0, 1)
        attended = attention(tokens, tokens, tokens)[0]
        x = layer.attention_norm(x + (attended if over_batch else attended.transpose(0, 1)))
        x = layer.feed_forward_norm(x + layer.feed_forward.linear2(F.relu(layer.feed_forward.linear1(x))))
    out, start = [], 0
    for index in (2, 1, 0):
        height, width = SIZES[index]
        level = x[:, start : start + height * width].transpose(1, 2).reshape(batch, 32, height, width)
        start += height * width
        lateral = decoder.lateral_projections[index]
        out.append(
            level + F.group_norm(F.conv2d(maps[index], lateral.conv.weight), 32, lateral.norm.weight, lateral.norm.bias)
        )
    return out[::-1]


def _difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def test_spatial_is_attention_over_positions():
    decoder, maps = _decoder("spatial"), _maps(2)
    assert _difference(decoder(maps), _reference(decoder, maps, over_batch=False)) < 1e-10


def test_released_is_the_published_function_at_one_picture():
    decoder, maps = _decoder("released"), _maps(1)
    assert _difference(decoder(maps), _reference(decoder, maps, over_batch=True)) < 1e-10


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_one_picture_does_not_depend_on_the_others(attention):
    decoder, maps = _decoder(attention), _maps(3)
    together = decoder(maps)
    for picture in range(3):
        alone = decoder([level[picture : picture + 1] for level in maps])
        assert _difference(alone, [level[picture : picture + 1] for level in together]) < 1e-12


def test_the_published_function_does_depend_on_the_others():
    """Control of the test above: attention over the batch axis is what "released" must not do at B > 1."""
    decoder, maps = _decoder("released"), _maps(2)
    together = _reference(decoder, maps, over_batch=True)
    alone = decoder([level[:1] for level in maps])
    assert _difference(alone, [level[:1] for level in together]) > 0.1


@pytest.mark.parametrize(("attention", "mixes"), [("spatial", True), ("released", False)])
def test_only_spatial_attention_mixes_positions(attention, mixes):
    decoder = _decoder(attention)
    tokens = torch.randn(1, 9, 32, dtype=torch.float64)
    changed = tokens.clone()
    changed[0, 4] += 1
    moved = (decoder.layers[0](changed) - decoder.layers[0](tokens)).abs().amax(-1)[0] > 1e-12
    assert moved[4]
    assert moved[torch.arange(9) != 4].all() == mixes
    assert moved[torch.arange(9) != 4].any() == mixes


def test_permuting_positions_within_a_level_permutes_the_output():
    decoder, maps = _decoder("spatial"), _maps(1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = [maps[0].flatten(2)[..., order].reshape(maps[0].shape), *maps[1:]]
    before, after = decoder(maps), decoder(shuffled)
    torch.testing.assert_close(after[0].flatten(2), before[0].flatten(2)[..., order])
    torch.testing.assert_close(after[1], before[1])


def test_released_query_and_key_are_idle_and_get_no_gradient():
    decoder = _decoder("released")
    sum(level.square().mean() for level in decoder(_maps(1))).backward()
    idle = {id(parameter) for parameter in decoder.idle_parameters()}
    assert len(idle) == 2 * 2 * 2  # layers, query and key, weight and bias
    for name, parameter in decoder.named_parameters():
        is_idle = ".query." in name or ".key." in name
        assert (id(parameter) in idle) == is_idle
        assert (parameter.grad is None) == is_idle, name
        assert is_idle or parameter.grad.abs().sum() > 0, name


def test_spatial_has_no_idle_parameters():
    assert _decoder("spatial").idle_parameters() == []


def test_dropout_acts_in_training_only():
    decoder, maps = _decoder("released", dropout=0.3), _maps(1)
    assert _difference(decoder(maps), decoder(maps)) == 0
    decoder.train()
    assert _difference(decoder(maps), decoder(maps)) > 0.01


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r'`decoder_attention`=\'batch\' is unknown; use "spatial" or "released"'):
        _decoder("batch")

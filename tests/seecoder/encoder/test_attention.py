import pytest
import torch
from torch import nn

from seecoder.encoder.attention import Attention, FeedForward, key_bias


def _fused(attention: Attention, dropout: float = 0.0, batch_first: bool = True) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    dim = attention.out.in_features
    oracle = nn.MultiheadAttention(
        dim, attention.num_heads, dropout=dropout, batch_first=batch_first, dtype=torch.float64
    )
    parts = (attention.query, attention.key, attention.value)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight for part in parts]),
            "in_proj_bias": torch.cat([part.bias for part in parts]),
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    return oracle.eval()


def _randomised(attention: Attention) -> Attention:
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention.double()


def test_matches_torch_multihead_attention():
    torch.manual_seed(0)
    attention = _randomised(Attention(24, 3))
    query, key, value = (torch.randn(2, length, 24, dtype=torch.float64) for length in (5, 7, 7))
    expected = _fused(attention)(query, key, value)[0]
    torch.testing.assert_close(attention(query, key, value), expected, rtol=0, atol=1e-12)


def test_attending_to_itself_is_attention_over_one_key():
    torch.manual_seed(0)
    attention = _randomised(Attention(24, 3))
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    alone = tokens.reshape(10, 1, 24)
    expected = _fused(attention)(alone, alone, alone)[0].reshape(2, 5, 24)
    torch.testing.assert_close(attention.attend_to_itself(tokens), expected, rtol=0, atol=1e-12)


def test_dropout_of_the_single_weight_takes_whole_heads_and_rescales_the_others():
    torch.manual_seed(0)
    attention = Attention(24, 3, dropout=0.25)
    nn.init.eye_(attention.value.weight)
    nn.init.eye_(attention.out.weight)
    tokens = torch.rand(4, 500, 24) + 0.5
    ratio = (attention.train().attend_to_itself(tokens) / tokens).unflatten(-1, (3, 8))
    assert torch.equal(ratio.amin(-1).round(decimals=4), ratio.amax(-1).round(decimals=4))  # a head as a whole
    kept = ratio[..., 0] > 0
    torch.testing.assert_close(ratio[..., 0][kept], torch.full_like(ratio[..., 0][kept], 1 / 0.75))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(kept[..., 0], kept[..., 1])  # heads are dropped one by one


def test_initialisation_has_the_bound_of_the_fused_matrix():
    torch.manual_seed(0)
    attention = Attention(96, 4)
    fused_bound = (6 / (96 + 3 * 96)) ** 0.5
    for part in (attention.query, attention.key, attention.value):
        assert part.weight.abs().max().item() == pytest.approx(fused_bound, rel=0.01)
        assert not part.bias.any()
    assert attention.out.weight.abs().max().item() == pytest.approx((6 / (96 + 96)) ** 0.5, rel=0.01)


def test_feed_forward_is_two_layers_with_a_relu():
    torch.manual_seed(0)
    block = FeedForward(8, 12).double()
    tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    hidden = (tokens @ block.linear1.weight.T + block.linear1.bias).clamp(min=0)
    torch.testing.assert_close(block(tokens), hidden @ block.linear2.weight.T + block.linear2.bias)


def test_a_bias_hides_keys_as_if_they_were_not_there():
    torch.manual_seed(0)
    attention = _randomised(Attention(24, 3))
    tokens = torch.randn(2, 4, 24, dtype=torch.float64)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    bias = key_bias(mask, (2, 2))
    assert bias.shape == (2, 1, 1, 4)
    few = attention(tokens, tokens[:, :2], tokens[:, :2])
    torch.testing.assert_close(attention(tokens, tokens, tokens, bias), few)
    # Half a cell counts half: as much as if the other key were there twice.
    half = key_bias(torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)[None, None], (1, 2))
    twice = attention(tokens, tokens[:, [0, 0, 1]], tokens[:, [0, 0, 1]])
    torch.testing.assert_close(attention(tokens, tokens[:, :2], tokens[:, :2], half), twice)

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seecoder.encoder.attention import Attention
from seecoder.encoder.query_transformer import QueryBlock, QueryTransformer

SIZES = ((5, 3), (3, 2), (1, 2))
GLOBAL, LOCAL, DIM = 2, 4, 16


def _transformer(position_aware: bool, layers: int = 5, in_values: bool = False) -> QueryTransformer:
    torch.manual_seed(3)
    transformer = QueryTransformer(3, DIM, 4, layers, 20, GLOBAL, LOCAL, position_aware, in_values)
    for name, parameter in transformer.named_parameters():
        if "position_encoding" not in name:
            parameter.data = torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.7)
    return transformer.double().eval()


def _levels(batch: int) -> list[torch.Tensor]:
    torch.manual_seed(4)
    return [torch.randn(batch, DIM, *size, dtype=torch.float64) for size in SIZES]


def _oracle(ours: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    oracle = nn.MultiheadAttention(DIM, ours.num_heads, batch_first=True, dtype=torch.float64).eval()
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        oracle.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        oracle.out_proj.load_state_dict(ours.out.state_dict())
    return oracle(query, key, value)[0]


def _reference(transformer: QueryTransformer, levels: list[torch.Tensor]) -> torch.Tensor:
    """The published forward in plain steps."""
    batch = levels[0].shape[0]
    encoding = transformer.position_encoding
    features, positions = [], []
    for index, level in enumerate(levels):
        features.append(level.flatten(2).transpose(1, 2) + transformer.level_embedding[index])
        positions.append(0 if encoding is None else encoding(*level.shape[-2:]).double())
    queries = transformer.queries[None].repeat(batch, 1, 1)
    where = transformer.query_positions[None].repeat(batch, 1, 1)
    for index, block in enumerate(transformer.blocks):
        feature, position = features[index % 3], positions[index % 3]
        local = queries[:, GLOBAL:]
        values = feature + position if block.positions_in_values else feature
        read = _oracle(block.cross_attention, local + where[:, GLOBAL:], feature + position, values)
        local = block.cross_attention_norm(local + read)
        queries = torch.cat([queries[:, :GLOBAL], local], dim=1)
        both = queries + where
        queries = block.self_attention_norm(queries + _oracle(block.self_attention, both, both, queries))
        hidden = F.relu(block.feed_forward.linear1(queries))
        queries = block.feed_forward_norm(queries + block.feed_forward.linear2(hidden))
    return queries


@pytest.mark.parametrize("position_aware", [False, True])
@pytest.mark.parametrize("in_values", [False, True])
def test_matches_the_published_steps(position_aware, in_values):
    transformer, levels = _transformer(position_aware, in_values=in_values), _levels(2)
    if transformer.position_encoding is not None:
        nn.init.normal_(transformer.position_encoding.mlp[4].weight, std=0.5)
    torch.testing.assert_close(transformer(levels), _reference(transformer, levels), rtol=0, atol=1e-10)


def test_position_aware_starts_as_the_plain_one():
    plain, aware, levels = _transformer(False), _transformer(True), _levels(1)
    aware.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(aware(levels), plain(levels))


def test_positions_and_their_jitter_matter_once_trained():
    transformer, levels = _transformer(True), _levels(2)
    assert transformer.position_encoding is not None
    before = transformer(levels)
    nn.init.normal_(transformer.position_encoding.mlp[4].weight, std=0.5)
    trained = transformer(levels)
    assert (trained - before).abs().max() > 1e-3
    jitter = torch.zeros(2, 3, 2)
    torch.testing.assert_close(transformer(levels, jitter), trained)
    jitter[1, 2, 0] = 0.4  # the coarsest level of the second picture alone
    jittered = transformer(levels, jitter)
    torch.testing.assert_close(jittered[0], trained[0])
    assert (jittered[1] - trained[1]).abs().max() > 1e-4
    torch.testing.assert_close(transformer(levels, jitter[1])[1], jittered[1])


def test_with_positions_in_values_a_token_says_where_what_it_reads_lies():
    # All attention is on the one cell that is not zero; the keys' positions hardly move it.
    def read(in_values: bool, cell: int) -> torch.Tensor:
        torch.manual_seed(0)
        block = QueryBlock(DIM, 2, 20, positions_in_values=in_values)
        positions = 0.1 * torch.randn(6, DIM)
        features = torch.zeros(1, 6, DIM)
        features[0, cell] = 1.0
        with torch.no_grad():
            for part in (block.cross_attention.query, block.cross_attention.key):
                part.weight.copy_(20 * torch.eye(DIM))
        return block(torch.ones(1, 3, DIM), torch.zeros(3, DIM), features, positions, 1).detach()

    torch.testing.assert_close(read(False, 1), read(False, 4))
    assert (read(True, 1) - read(True, 4)).abs().max() > 0.05


def test_levels_are_read_finest_first_in_turn():
    transformer, levels = _transformer(False, layers=2), _levels(1)
    before = transformer(levels)
    unread = [*levels[:2], levels[2] + 1]
    assert torch.equal(transformer(unread), before)  # two blocks never come to the third level
    assert not torch.equal(transformer([levels[0] + 1, *levels[1:]]), before)


def test_global_queries_see_the_picture_through_the_local_ones_only():
    transformer, levels = _transformer(False, layers=1), _levels(1)
    nn.init.zeros_(transformer.blocks[0].self_attention.out.weight)
    before, after = transformer(levels), transformer([level * 2 for level in levels])
    assert torch.equal(before[:, :GLOBAL], after[:, :GLOBAL])
    assert not torch.equal(before[:, GLOBAL:], after[:, GLOBAL:])


def test_every_parameter_gets_a_gradient():
    transformer, levels = _transformer(True), _levels(1)
    assert transformer.position_encoding is not None
    nn.init.normal_(transformer.position_encoding.mlp[4].weight, std=0.5)
    (transformer(levels) * torch.randn(GLOBAL + LOCAL, DIM)).sum().backward()
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys shifts all logits of a query alike and cancels in the softmax.
        assert parameter.grad.abs().max() > 1e-9 or name.endswith("key.bias"), name


def test_the_context_starts_as_tokens_that_differ_and_say_something_about_the_picture():
    torch.manual_seed(0)
    transformer = QueryTransformer(3, 32, 4, 9, 64, 4, 16, position_aware=False)
    levels = [torch.randn(16, 32, *size) for size in SIZES]
    with torch.no_grad():
        context = transformer(levels)
    assert context.pow(2).mean().sqrt() == pytest.approx(1, rel=1e-3)  # a layer norm's
    share = context.var(0, correction=0).sum() / context.pow(2).mean(0).sum()
    assert share > 0.1, "nearly all of the context is the same for every picture"
    directions = nn.functional.normalize(context, dim=-1)
    cosines = (directions @ directions.transpose(1, 2)).mean(0)
    for group in (cosines[:4, :4], cosines[4:, 4:]):  # global, local
        alike = (group.sum() - group.trace()) / (group.numel() - len(group))
        assert alike < 0.75, "the queries start as one token, repeated"

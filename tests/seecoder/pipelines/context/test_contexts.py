"""Contexts of pictures and of a text are joined side by side or token by token."""

import torch

from seecoder.pipelines.context.contexts import Contexts, pad_tokens


def rows(length, value, count=1):
    return torch.full((count, length, 2), float(value))


def test_side_by_side_keeps_all_tokens_and_mixes_pooled_vectors_by_half():
    pictures = Contexts(rows(2, 1, 2), rows(2, 0, 2), torch.ones(2, 3), torch.zeros(2, 3))
    text = Contexts(rows(1, 5), rows(1, 7), torch.full((1, 3), 3.0), torch.full((1, 3), 1.0))
    joined = pictures.beside(text, None)
    assert joined.context[1, :, 0].tolist() == [1, 1, 5]
    assert joined.negative_context[0, :, 1].tolist() == [0, 0, 7]
    assert joined.pooled is not None
    assert joined.pooled.tolist() == [[2, 2, 2]] * 2
    assert joined.negative_pooled is not None
    assert joined.negative_pooled.tolist() == [[0.5] * 3] * 2


def test_a_weight_takes_the_mean_of_tokens_over_the_longer_of_the_two():
    joined = Contexts(rows(3, 1), rows(3, 0)).beside(Contexts(rows(1, 5), rows(1, 2)), 0.25)
    assert joined.context[0, :, 0].tolist() == [2.0, 0.75, 0.75]
    assert joined.negative_context[0, :, 0].tolist() == [0.5, 0, 0]
    assert joined.pooled is None


def test_copies_of_a_row_are_neighbours():
    context = torch.stack([rows(1, 1)[0], rows(1, 2)[0]])
    assert Contexts(context, context).repeated(2).context[:, 0, 0].tolist() == [1, 1, 2, 2]


def test_padding_appends_zeros_and_never_cuts():
    assert pad_tokens(rows(1, 4), 3)[0, :, 0].tolist() == [4, 0, 0]
    assert pad_tokens(rows(3, 4), 2).shape == (1, 3, 2)

import torch

from train.conditioners.label_tokens import LabelTokens


def test_a_class_is_one_token_and_none_is_zero():
    torch.manual_seed(0)
    part = LabelTokens(16, num_labels=4)
    tokens = part({"labels": torch.tensor([[1], [3], [1], [-1]])}, torch.tensor([True, True, False, True]))
    assert tokens.shape == (4, 1, 16)
    assert not torch.equal(tokens[0], tokens[1])
    assert not tokens[2:].any()
    assert torch.equal(tokens[0], part.norm(part.labels(torch.tensor([1]))))


def test_boxes_say_where_and_places_that_differ_by_a_pixel_are_told_apart():
    torch.manual_seed(0)
    part = LabelTokens(16, num_labels=4, octaves=5)
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 0.9]], [[0.1, 0.2, 0.5, 0.6 + 1 / 64], [0, 0, 0, 0]]])
    labels = torch.tensor([[1, 2], [1, -1]])
    tokens = part({"labels": labels, "boxes": boxes}, torch.ones(2, dtype=torch.bool))
    assert tokens.shape == (2, 2, 16)
    assert (tokens[0, 0] - tokens[1, 0]).abs().max() > 1e-2
    assert not tokens[1, 1].any()
    moved = part({"labels": labels.flip(1), "boxes": boxes.flip(1)}, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(moved.flip(1), tokens)


def test_what_is_exported_is_what_was_trained(tmp_path):
    part = LabelTokens(16, num_labels=4, octaves=2)
    assert part.export(tmp_path) == {}
    again = LabelTokens.from_pretrained(tmp_path / "label_tokens")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in part.state_dict().items())
    assert again.octaves == 2

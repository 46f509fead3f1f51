import torch

from scripts.evaluation.context_neighbours import CROPS, random_crops, same_photo, similarities


def test_crops_are_squares_of_the_photograph() -> None:
    ramp = torch.linspace(0, 1, 200).expand(3, 120, 200)
    crops = random_crops(ramp, 20, 32, torch.Generator().manual_seed(0))
    assert crops.shape == (20, 3, 32, 32)
    widths = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) * 199 / 31 * 32  # the ramp says how much of it a crop has
    assert float(widths.min()) > 55
    assert float(widths.max()) < 125
    assert float(crops[:, 0, 0, 0].max() - crops[:, 0, 0, 0].min()) > 0.2


def test_alike_are_the_contexts_that_differ_from_the_mean_alike() -> None:
    directions = torch.eye(3).repeat_interleave(CROPS, 0) + 0.01 * torch.randn(3 * CROPS, 3)
    pictures = (10 + directions)[:, :, None, None]
    cosines = similarities(lambda part: part.flatten(1)[:, None], pictures)
    assert bool((cosines.diagonal() == -1).all())
    assert same_photo(cosines, photos=2) == 1.0
    assert same_photo(cosines[torch.arange(len(cosines)).roll(CROPS)], photos=2) == 0.0

import torch

from train.stages.noise import normal, uniform

KEYS = torch.tensor([[0, 5], [0, 6], [1, 5], [-1, 0]])


def test_noise_belongs_to_the_sample_not_to_the_batch():
    together = normal(3, "noise", KEYS, (2, 4))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(normal(3, "noise", KEYS[order], (2, 4)), together[order])
    assert torch.equal(normal(3, "noise", KEYS[1:2], (2, 4)), together[1:2])


def test_seed_purpose_epoch_and_sample_all_matter():
    reference = normal(3, "noise", KEYS[:1], (8,))
    others = [
        normal(4, "noise", KEYS[:1], (8,)),
        normal(3, "posterior", KEYS[:1], (8,)),
        normal(3, "noise", KEYS[1:2], (8,)),
        normal(3, "noise", KEYS[2:3], (8,)),
    ]
    assert all((other - reference).abs().min() > 0 for other in others)


def test_global_random_state_is_not_touched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    normal(0, "noise", KEYS, (4,))
    uniform(0, "drop", KEYS, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_distributions():
    keys = torch.stack([torch.zeros(4000, dtype=torch.long), torch.arange(4000)], dim=1)
    noise = normal(0, "noise", keys, (16,))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    correlation = float((noise[1:] * noise[:-1]).mean())  # neighbours' seeds are close, their noise must not be
    assert abs(correlation) < 0.02

import pytest
import torch
from torch import distributed, nn

from train.settings import OptimizerSettings
from train.stages.autoencoder import AutoencoderStage
from train.stages.first_stage.adversary import (
    AdversarialSettings,
    Adversary,
    PatchDiscriminator,
    adaptive_weight,
    average_over_processes,
    hinge_loss,
)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    last = nn.Linear(3, 2)
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    output = last(inputs)
    reconstruction, adversarial = 3 * output.square().sum(), -output.sum()
    ours = torch.autograd.grad(reconstruction, last.weight, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(adversarial, last.weight, retain_graph=True)[0].norm()
    weight = adaptive_weight(reconstruction, adversarial, last.weight)
    assert float(weight) == pytest.approx(float(ours / (theirs + 1e-4)), rel=1e-6)
    assert not weight.requires_grad
    assert float(adaptive_weight(1e9 * reconstruction, adversarial, last.weight)) == 1e4
    assert float(adaptive_weight(reconstruction, 0 * adversarial, last.weight)) <= 1e4


def test_hinge_loss():
    assert float(hinge_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0]))) == 0
    assert float(hinge_loss(torch.tensor([0.0]), torch.tensor([0.0]))) == 1


@pytest.mark.parametrize(("layers", "expected"), [(1, 14), (2, 6), (3, 2)])
def test_patches(layers, expected):
    logits = PatchDiscriminator(8, layers)(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 1, expected, expected)


def test_discriminator_learns_and_leaves_no_gradient_behind():
    torch.manual_seed(0)
    adversary = Adversary(PatchDiscriminator(8, 2), AdversarialSettings(channels=8))
    real, fake = torch.rand(8, 3, 32, 32), -torch.rand(8, 3, 32, 32)
    losses = [float(adversary.train_step([(real, fake)])) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(weight.requires_grad for weight in adversary.discriminator.parameters())
    output = fake.clone().requires_grad_(True)
    term, _ = adversary.generator_term(output.square().mean(), output, output)
    (gradient,) = torch.autograd.grad(term, output)
    assert float(gradient.abs().max()) > 0


@pytest.mark.heavy
def test_discriminator_is_not_touched_before_its_start(tmp_path, fit, load):
    def config(start: int) -> dict:
        return {
            "run": {"folder": str(tmp_path / f"run{start}"), "max_steps": 2, "accelerator": "cpu", "log_every": 1},
            "stage": {
                "class_path": "train.stages.autoencoder.AutoencoderStage",
                "init_args": {
                    "optimizer": {"lr": 1e-3},
                    "block_out_channels": [8, 8],
                    "norm_num_groups": 4,
                    "adversarial": {"start_step": start, "channels": 8},
                },
            },
            "data": {
                "class_path": "train.sources.world_data.WorldPictures",
                "init_args": {"batch_size": 2, "pool_size": 8, "held_out": 2, "image_size": 32},
            },
        }

    initial = AutoencoderStage(
        OptimizerSettings(), adversarial=AdversarialSettings(channels=8)
    ).discriminator.state_dict()
    for start, touched in ((2, False), (1, True)):
        assert fit(config(start)) == 0
        state = load(tmp_path / f"run{start}" / "step-00000002.ckpt")["state_dict"]
        same = all(torch.equal(value, state[f"discriminator.{name}"]) for name, value in initial.items())
        assert same != touched
        log = (tmp_path / f"run{start}" / "metrics.csv").read_text()
        assert ("adaptive_weight" in log) == touched


def test_settings_are_checked():
    with pytest.raises(ValueError, match="channels"):
        AdversarialSettings(channels=10)


def test_micro_batches_give_the_step_of_one_batch():
    real, fake = torch.rand(2, 8, 3, 32, 32).mul(2).sub(1).unbind(0)
    states = []
    for pairs in ([(real, fake)], list(zip(real.split(2), fake.split(2), strict=True))):
        torch.manual_seed(0)
        adversary = Adversary(PatchDiscriminator(8, 2), AdversarialSettings(channels=8))
        loss = float(adversary.train_step(pairs))
        states.append((loss, [state["exp_avg"] for state in adversary.optimizer.state.values()]))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-5)
    for one, other in zip(states[0][1], states[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_an_output_that_is_not_finite_leaves_the_discriminator_alone():
    adversary = Adversary(PatchDiscriminator(8, 2), AdversarialSettings(channels=8))
    before = {name: value.clone() for name, value in adversary.discriminator.state_dict().items()}
    real = torch.rand(2, 3, 32, 32)
    adversary.train_step([(real, real * float("nan"))])
    assert all(torch.equal(value, before[name]) for name, value in adversary.discriminator.state_dict().items())
    assert not adversary.optimizer.state


def test_processes_agree_on_the_adaptive_weight(monkeypatch):
    """Norms are those of gradients averaged over the processes: here this one's and one of four times as much."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.mul_(5))
    last = torch.ones(2, requires_grad=True)
    losses = (3 * last.square().sum(), last.square().sum())  # gradients of 6 and of 2
    assert float(adaptive_weight(*losses, last)) == pytest.approx(3, rel=1e-4)
    tensor = torch.ones(3)
    average_over_processes([tensor])
    assert tensor.tolist() == [2.5] * 3

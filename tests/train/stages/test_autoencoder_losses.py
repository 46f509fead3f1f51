import pytest
import torch
from torch import nn

from train.settings import OptimizerSettings
from train.stages.autoencoder import AutoencoderLoss, AutoencoderStage
from train.stages.autoencoder_losses import (
    AdversarialSettings,
    Adversary,
    PatchDiscriminator,
    PerceptualDistance,
    adaptive_weight,
    hinge_loss,
    load_network,
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
    losses = [float(adversary.train_step(real, fake)) for _ in range(20)]
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


def test_distance_is_zero_for_equal_pictures_symmetric_and_differentiable(backbone_folder):
    distance = PerceptualDistance(load_network(backbone_folder))
    assert not any(module.training for module in distance.network.modules())
    torch.manual_seed(0)
    first, second = torch.rand(2, 2, 3, 32, 32).mul(2).sub(1).unbind(0)
    assert float(distance(first, first)) == 0
    assert float(distance(first, second)) == pytest.approx(float(distance(second, first)), rel=1e-6)
    assert 0 < float(distance(first, second)) <= 3 * 4
    second.requires_grad_(True)
    distance(first, second).backward()
    assert float(second.grad.abs().max()) > 0


def test_the_network_is_frozen_and_not_in_checkpoints(backbone_folder):
    stage = AutoencoderStage(
        OptimizerSettings(), loss=AutoencoderLoss(perceptual=0.1), perceptual_network=str(backbone_folder)
    )
    assert not [name for name, _ in stage.trained_parameters() if not name.startswith("vae.")]
    assert not any(module.training for module in stage.train().get_submodule("perceptual").modules())
    checkpoint = {"state_dict": stage.state_dict()}
    stage.on_save_checkpoint(checkpoint)
    assert not [name for name in checkpoint["state_dict"] if name.startswith("perceptual")]


def test_weight_and_network_go_together(backbone_folder, tmp_path):
    with pytest.raises(ValueError, match="both or neither"):
        AutoencoderStage(OptimizerSettings(), perceptual_network=str(backbone_folder))
    with pytest.raises(ValueError, match="both or neither"):
        AutoencoderStage(OptimizerSettings(), loss=AutoencoderLoss(perceptual=1))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_network(tmp_path)

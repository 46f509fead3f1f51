import pytest
import torch

from tests.fixtures.networks import random_lpips
from train.settings import OptimizerSettings
from train.stages.autoencoder import AutoencoderLoss, AutoencoderStage
from train.stages.first_stage.perceptual_distance import load_distance


def test_lpips_is_read_from_its_file_and_its_folder(tmp_path):
    file, module = tmp_path / "vgg.safetensors", random_lpips("vgg", tmp_path)
    pairs = torch.rand(2, 2, 3, 32, 32)
    for path in (file, tmp_path):
        assert torch.equal(load_distance(path)(*pairs), module(*pairs))


def test_distance_is_zero_for_equal_pictures_symmetric_and_differentiable(backbone_folder):
    distance = load_distance(backbone_folder)
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
        load_distance(tmp_path)

import os

import pytest
import torch

from seecoder.images.gate import load_image
from seecoder.lpips import LPIPS, NETWORKS, load_lpips
from seecoder.weights.safetensors_files import WeightsError, write_safetensors
from tests.fixtures.networks import random_lpips

WEIGHTS = os.environ.get("LPIPS_WEIGHTS")  # a folder that scripts/convert_lpips.py wrote
PHOTOGRAPH = os.environ.get("PHOTOGRAPH")  # jeep-input.jpg of Prompt-Free Diffusion's examples, 768x512


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    one, other = torch.rand((2, 3, 3, 64, 48), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return one, other


@pytest.mark.parametrize("network", NETWORKS)
def test_the_distance_is_that_of_torchmetrics(network, pairs) -> None:
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    theirs = lpips._LPIPS(pretrained=True, net=network, pnet_rand=True).eval()  # random trunk, published heads
    ours = LPIPS(network)
    trunk = theirs.net.state_dict()  # slice1.0.weight, ...: torchvision's numbers
    ours.features.load_state_dict({name.partition(".")[2]: value for name, value in trunk.items()})
    for head, layer in zip(ours.heads, theirs.lins, strict=True):
        head.copy_(layer.model[-1].weight)
    with torch.no_grad():
        expected = theirs(*pairs).flatten()
    torch.testing.assert_close(ours(*pairs), expected, rtol=1e-5, atol=0)
    assert expected.min() > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_a_file_or_a_folder_is_read(network, pairs, tmp_path) -> None:
    written = random_lpips(network, tmp_path)
    for module in (load_lpips(tmp_path, network), load_lpips(tmp_path / f"{network}.safetensors")):
        assert torch.equal(module(*pairs), written(*pairs))
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())
    maps = module.maps(pairs[0])
    assert [len(part) for part in maps] == [3] * 5
    sides = {"alex": [15, 7, 3, 3, 3], "vgg": [64, 32, 16, 8, 4]}
    assert [part.shape[2] for part in maps] == sides[network]


def test_equal_pictures_have_no_distance_and_black_ones_a_gradient(pairs) -> None:
    module = random_lpips("alex")
    assert module(pairs[0], pairs[0]).tolist() == [0, 0, 0]
    for layer in module.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias.fill_(-9)  # all maps are zero, where a root has no derivative
    pictures = pairs[0].clone().requires_grad_()
    module(pictures, pairs[1]).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.isfinite().all()


def test_half_precision_is_compared_in_float32(pairs) -> None:
    module = random_lpips("alex")
    halves = [part.bfloat16().requires_grad_() for part in pairs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = module(*halves)
    assert torch.equal(distances, module(*(part.float() for part in halves)))
    distances.sum().backward()
    assert halves[0].grad.abs().max() > 0


def test_what_is_no_lpips_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no LPIPS weights; scripts/convert_lpips.py writes"):
        load_lpips(tmp_path)
    with pytest.raises(ValueError, match="`network`='squeeze' must be 'alex' or 'vgg'"):
        load_lpips(tmp_path, "squeeze")
    file = tmp_path / "vgg.safetensors"
    write_safetensors(file, {"features.0.weight": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="has no LPIPS weights"):
        load_lpips(file)
    tensors = random_lpips("alex").state_dict()
    del tensors["features.3.bias"]
    write_safetensors(file, {**tensors, "heads.0": torch.zeros(())}, {"network": "alex"})
    with pytest.raises(WeightsError, match=r"1 weight is missing \(features.3.bias\); 1 does not fit \(heads.0 "):
        load_lpips(file)


@pytest.mark.slow
@pytest.mark.skipif(not (WEIGHTS and PHOTOGRAPH), reason="LPIPS_WEIGHTS and PHOTOGRAPH are not set")
@pytest.mark.parametrize(("network", "noise", "mirrored"), [("alex", 0.185, 0.509), ("vgg", 0.302, 0.579)])
def test_the_published_weights_see_noise_and_a_mirror_image(network, noise, mirrored) -> None:
    whole = load_image(PHOTOGRAPH)[None]
    square = torch.nn.functional.interpolate(whole, (256, 256), mode="bicubic", antialias=True)
    picture = square.clamp(0, 1) * 2 - 1
    noisy = picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    module = load_lpips(WEIGHTS, network)
    assert float(module(noisy, picture)) == pytest.approx(noise, abs=0.002)
    assert float(module(picture.flip(3), picture)) == pytest.approx(mirrored, abs=0.01)

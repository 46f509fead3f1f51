"""LPIPS where its package and its weights are, the pyramid where either is missing; neither is needed here."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from seecoder.sampling import SyncDiffusion, sample
from seecoder.sampling.methods.perceptual import default_loss, pyramid_distance
from seecoder.sampling.methods.registry import build_methods
from tests.fixtures.networks import random_lpips

CPU = torch.device("cpu")


class FakeLPIPS(torch.nn.Module):
    """The call and the output shape of `lpips.LPIPS`, with a distance that no other loss here has."""

    built: list["FakeLPIPS"]

    def __init__(self, *, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        self.factor = torch.nn.Parameter(torch.tensor(7.0))
        self.compared: list[int] = []
        self.built.append(self)

    def forward(self, pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert pictures.dtype == references.dtype == torch.float32
        self.compared.append(len(pictures))
        return self.factor * (pictures - references).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """An empty file where torch's hub folder would hold VGG's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    file.touch()
    return file


@pytest.fixture
def package(monkeypatch) -> list[FakeLPIPS]:
    """A package `lpips`; the list holds the models that were built."""
    monkeypatch.setattr(FakeLPIPS, "built", [], raising=False)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLPIPS))
    return FakeLPIPS.built


@pytest.fixture
def pairs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.rand((2, 3, 3, 16, 16), generator=generator, dtype=torch.float64) * 2 - 1)


def test_lpips_is_used_where_its_package_and_weights_are(weights, package, pairs, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        loss = default_loss(CPU)
    assert caplog.text == ""
    pictures, references = pairs[0].requires_grad_(), pairs[1]
    distances = loss(pictures, references)
    assert distances.shape == (3,)
    expected = 7.0 * (pictures - references).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    distances.sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad != 0).all()
    assert package[0].factor.grad is None


def test_lpips_works_in_float32_on_half_precision(weights, package, pairs) -> None:
    """And its gradient is not lost on the way back."""
    pictures = pairs[0].bfloat16().requires_grad_()
    loss = default_loss(CPU)(pictures, pairs[1].bfloat16())
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().max() > 0


@pytest.mark.parametrize("missing", ["weights", "package"])
def test_without_either_the_pyramid_takes_its_place_and_the_log_says_so(
    missing, weights, package, monkeypatch, caplog
) -> None:
    if missing == "weights":
        weights.unlink()
    else:
        monkeypatch.setitem(sys.modules, "lpips", None)  # an import of it fails
    with caplog.at_level(logging.WARNING):
        assert default_loss(CPU) is pyramid_distance
    assert "LPIPS is not available" in caplog.text
    assert "vgg16-397923af.pth" in caplog.text
    assert package == []


def test_windows_are_compared_by_lpips_unless_told_otherwise(
    weights, package, make_scheduler, make_denoiser, context
) -> None:
    def run(loss):
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 8, 20),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=SyncDiffusion(stride=4, sync_threshold=1.0, loss=loss),
            decoder=lambda latents: latents[:, :3],
        )

    by_default = run(None)
    assert len(package) == 1  # built once for the whole run
    assert package[0].compared == [3, 3]  # every window but the anchor, in both steps
    assert torch.equal(by_default, run(default_loss(CPU)))
    assert not torch.allclose(by_default, run(pyramid_distance), rtol=1e-3)


def test_a_path_is_lpips_with_these_weights(tmp_path, make_scheduler, make_denoiser, context, caplog) -> None:
    module = random_lpips("vgg", tmp_path)

    def run(loss):
        return sample(
            make_denoiser(),
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 40),
            native_size=(16, 16),
            num_inference_steps=2,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=SyncDiffusion(stride=8, sync_threshold=1.0, loss=loss),
            decoder=lambda latents: latents[:, :3],
        )

    with caplog.at_level(logging.WARNING):
        by_path = run(str(tmp_path))
    assert "LPIPS" not in caplog.text
    assert torch.equal(by_path, run(module))
    assert not torch.equal(by_path, run(pyramid_distance))
    with pytest.raises(ValueError, match=r"`loss`='nowhere' .* must be a function or the path of LPIPS"):
        SyncDiffusion(loss="nowhere")
    (method,) = build_methods("syncdiffusion", [("loss", str(tmp_path))]) or []
    assert method.loss == str(tmp_path)

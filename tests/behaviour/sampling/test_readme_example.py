"""The method that the README of the package adds runs as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import seecoder.sampling
from seecoder.sampling import MultiDiffusion, ScaleCrafter, sample

README = Path(seecoder.sampling.__file__).with_name("README.md")


@pytest.fixture
def enlarge_and_redraw(monkeypatch) -> Any:
    """The class of the README's code block."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    module = ModuleType("readme_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    return module.EnlargeAndRedraw


def run(method, make_scheduler, denoiser, context, size=(32, 32), name="ddim", **options) -> torch.Tensor:
    return sample(
        denoiser,
        make_scheduler(name),
        latent_shape=(1, 4, *size),
        native_size=(16, 16),
        num_inference_steps=4,
        context=context[:1],
        generator=torch.Generator().manual_seed(0),
        method=method,
        **options,
    )


@pytest.mark.parametrize(("name", "steps"), [("ddim", [4, 2]), ("heun", [7, 5])])
def test_the_example_samples_small_and_redraws_large(
    name, steps, enlarge_and_redraw, make_scheduler, make_denoiser, context
) -> None:
    sizes, ends = [], []
    latents = run(
        enlarge_and_redraw(),
        make_scheduler,
        make_denoiser(),
        context,
        name=name,
        on_step=lambda progress: sizes.append(progress.latents.shape[-1]),
        on_stage=lambda end: ends.append(end.stage),
    )
    assert latents.shape == (1, 4, 32, 32)
    assert sizes == [16] * steps[0] + [32] * steps[1]
    assert ends == ["native", "large"]


@pytest.mark.parametrize("other", [ScaleCrafter(), MultiDiffusion(stride=8)])
def test_the_example_composes(other, enlarge_and_redraw, make_scheduler, make_unet, denoiser_of, context) -> None:
    unet = make_unet()
    alone = run(enlarge_and_redraw(), make_scheduler, denoiser_of(unet), context, unet=unet)
    together = run([other, enlarge_and_redraw()], make_scheduler, denoiser_of(unet), context, unet=unet)
    assert not torch.allclose(together, alone, rtol=1e-3)


def test_the_example_checks_its_setting(enlarge_and_redraw) -> None:
    with pytest.raises(ValueError, match=r"`strength`=2 of EnlargeAndRedraw\(\) must be a number from 0 to 1\."):
        enlarge_and_redraw(strength=2)

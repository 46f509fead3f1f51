"""Our results against the published code's.

published.json holds what the released repositories computed on the toy networks of conftest.py (their code is not part
of this project, three of them have no licence), and by how much and why our defaults depart where theirs is wrong.
"""

import json
from pathlib import Path

import pytest
import torch

from seecoder.sampling import DemoFusion, MultiDiffusion, ScaleCrafter, SyncDiffusion, sample
from seecoder.sampling.perceptual import pyramid_distance

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
RELEASED = DemoFusion(stride=8, jitter=False, skip_dead_steps=False, blur_padding="zeros")
TWICE = {"level.1": 2.0, "level.2": 2.0}
LONG = {"dilate_tau": 0.7, "damp_tau": 0.7, "progressive": True}

CASES = {
    "multidiffusion": (MultiDiffusion(stride=4), (24, 32), 8, {}),
    "demofusion 2x ddim": (RELEASED, (32, 32), 8, {}),
    "demofusion 3x ddim": (RELEASED, (48, 48), 5, {}),
    "demofusion 2x euler, scaled by its own sigma": (RELEASED, (32, 32), 8, {"name": "euler"}),
    "scalecrafter 2x eta 1": (ScaleCrafter(TWICE, 0.6, False, damp_tau=0.0), (32, 32), 10, {"eta": 1.0}),
    "scalecrafter 2.5x": (
        ScaleCrafter({"level.1": 2.5, "level.2": 2.5}, 0.7, False, damp_tau=0.0), (40, 40), 10, {}
    ),
    "scalecrafter 4x progressive damped": (
        ScaleCrafter({"level.1": 3.0, "level.2": 4.0}, damping={"mid": 4.0, "up.0": 3.0}, **LONG),
        (64, 64),
        10,
        {"eta": 1.0},
    ),
    "scalecrafter 2x dispersed": (
        ScaleCrafter(
            TWICE, 0.6, False, damp_tau=0.0, disperse=["mid", "down.2"], disperse_tau=0.3, dispersion="published"
        ),
        (32, 32),
        10,
        {"eta": 1.0},
    ),
    "syncdiffusion": (
        SyncDiffusion(window=64, stride=16, sync_threshold=0.5, clamp=True, loss=pyramid_distance), (64, 96), 2, {}
    ),
}  # fmt: skip


def toy_decoder() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, 12, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.PixelShuffle(2),
        torch.nn.Conv2d(3, 3, 3, padding=1),
    )
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return net.requires_grad_(False)


@pytest.mark.parametrize("case", CASES)
def test_against_the_published_code(case, make_scheduler, make_unet, denoiser_of, context) -> None:
    method, size, steps, options = CASES[case]
    unet, decoder = make_unet(), toy_decoder()
    latents = sample(
        denoiser_of(unet),
        make_scheduler(options.get("name", "ddim")),
        latent_shape=(1, 4, *size),
        native_size=(64, 64) if case == "syncdiffusion" else (16, 16),
        context=context[:1],
        negative_context=torch.zeros_like(context[:1]),
        guidance_scale=3.0,
        eta=options.get("eta", 0.0),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        method=method,
        unet=unet,
        decoder=lambda values: decoder(values / 0.18215),
    )
    published = PUBLISHED["equal"][case]
    assert latents.flatten()[:: latents.numel() // 8][:8].tolist() == pytest.approx(published["values"], rel=1e-6)
    assert float(latents.norm()) == pytest.approx(published["norm"], rel=1e-6)


def test_every_departure_says_by_how_much_and_why() -> None:
    assert all(entry["relative_rms"] > 0 and entry["why"] for entry in PUBLISHED["departs"].values())
    assert all(entry["relative_rms"] < 1e-6 for entry in PUBLISHED["equal"].values())
    assert PUBLISHED["equal"].keys() == CASES.keys()

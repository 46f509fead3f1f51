"""Presets by the size, and what methods cost, without torch."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from seecoder.presets import PRESETS, count_windows, preset_settings, settled_preset
from seecoder.sampling import DemoFusion, MultiDiffusion, RectifiedHR, sample
from seecoder.sampling.methods.registry import build_methods
from tests.fixtures.pipelines import build_scheduler

NATIVE = (64, 64)
FAST = "scalecrafter,rectifiedhr"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), ("", "", "", "")),
        ((32, 128), ("", "", "", "")),  # flat, but not larger
        ((128, 128), (FAST, FAST, "scalecrafter", "scalecrafter,demofusion")),
        ((256, 256), (FAST, FAST, FAST, FAST)),
        ((64, 256), ("scalecrafter", "scalecrafter", "scalecrafter", "scalecrafter,demofusion")),
        ((256, 64), ("scalecrafter", "scalecrafter", "scalecrafter", "scalecrafter,demofusion")),
    ],
)
def test_presets_choose_by_size_and_aspect(size, expected):
    assert tuple(preset_settings(preset, size, NATIVE, 50)[0] for preset in PRESETS) == expected


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 10, 25, 50, 1000])
@pytest.mark.parametrize("side", [80, 128, 192, 512])
def test_every_stage_has_a_step_however_few_there_are(steps, side):
    names, settings = preset_settings("auto", (side, side), NATIVE, steps)
    switches = settings.get("switch_at", ())
    ends = [0, *(round(at * steps) for at in switches), steps]
    assert all(low < high for low, high in pairwise(ends))
    assert (names == FAST) == (steps > len(RectifiedHR().sizes((side, side), NATIVE)) - 1)
    if steps >= 25:
        assert switches == (0.85, 0.95)[: len(switches)]


def test_costs_are_those_of_the_table():
    """The table of `data/world/highres` counted what went through the UNet, 25 steps with guidance."""
    known = {
        ("", 2): 200, ("", 4): 800, ("scalecrafter", 3): 450, ("rectifiedhr", 2): 80, ("rectifiedhr", 3): 106,
        ("demofusion", 2): 622, ("demofusion", 3): 2118, ("demofusion", 4): 4978,
    }  # fmt: skip
    for (names, factor), windows in known.items():
        size = (64 * factor, 64 * factor)
        assert count_windows(names, size, NATIVE, steps=25) == windows, (names, factor)
    for factor, windows in ((2, 74), (3, 78), (4, 98)):
        size = (64 * factor, 64 * factor)
        names, settings = preset_settings("auto", size, NATIVE, 25)
        assert count_windows(names, size, NATIVE, steps=25, settings=settings) == windows
    assert (
        count_windows("scalecrafter,demofusion", (256, 256), NATIVE, steps=25, settings={"use_windows": False}) == 1326
    )
    blind = {"windows_see_context": False}
    assert count_windows("demofusion", (128, 128), NATIVE, steps=25, settings=blind) == 424


@pytest.mark.parametrize("method", [None, MultiDiffusion(), RectifiedHR(resize_in="latents"), DemoFusion()])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 32), (24, 24)])
def test_costs_are_what_the_engine_evaluates(method, size):
    seen = 0.0

    def denoiser(latents, timestep, context, **conditions):
        nonlocal seen
        seen += latents.shape[0] * latents.shape[2] * latents.shape[3] / 64
        return torch.zeros_like(latents)

    context = torch.zeros(1, 2, 4)
    sample(
        denoiser, build_scheduler(), latent_shape=(1, 1, *size), native_size=(8, 8), context=context,
        negative_context=context, guidance_scale=3.0, num_inference_steps=20, method=method,
    )  # fmt: skip
    name = "" if method is None else type(method).__name__.lower()
    assert count_windows(name, size, (8, 8), steps=20) == pytest.approx(seen, rel=0.15)


def test_a_preset_is_said_with_its_cost():
    names, settings, about = settled_preset("auto", (256, 256), NATIVE, 50, 4.0)
    assert (names, settings) == preset_settings("auto", (256, 256), NATIVE, 50)
    chosen = "auto: scalecrafter,rectifiedhr switch_at=(0.85, 0.95)"
    assert about == f"{chosen}, about 196 native-sized windows a picture (plain sampling: 1,600)"
    assert "about 98 native-sized windows" in settled_preset("auto", (256, 256), NATIVE, 50, 1)[2]
    assert settled_preset("auto", NATIVE, NATIVE, 50, 4.0) == ("", {}, "")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(128, 128), (512, 512), (64, 200)])
def test_presets_are_settings_that_their_methods_accept(preset, size):
    names, settings = preset_settings(preset, size, NATIVE, 50)
    assert build_methods(names, list(settings.items()))


def test_no_torch_is_needed():
    code = "import sys, seecoder.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Our results against the published code's.

published.json holds what the released repositories computed on the toy networks of conftest.py (their code is not part
of this project, three of them have no licence), and by how much and why our defaults depart where theirs is wrong.
The departures are computed again here: what the released code does is said by a setting of ours, or done to our code.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from seecoder.sampling import DemoFusion, MultiDiffusion, ScaleCrafter, SyncDiffusion, View, sample
from seecoder.sampling.methods.multidiffusion import jitter
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.methods.scalecrafter import redilation as redilation_module

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


@pytest.fixture
def run(make_scheduler, make_unet, denoiser_of, context) -> Callable[..., torch.Tensor]:
    """Latents of a method at a size, in the published tests' setting."""

    def call(
        method, size, steps, *, name="ddim", pictures=1, native=16, eta=0.0, wrapped=None, **options: Any
    ) -> torch.Tensor:
        unet, decoder = make_unet(), toy_decoder()
        denoiser = denoiser_of(unet)
        return sample(
            denoiser if wrapped is None else wrapped(denoiser),
            make_scheduler(name),
            latent_shape=(pictures, 4, *size),
            native_size=(native, native),
            context=context[:pictures],
            negative_context=torch.zeros_like(context[:1]),
            guidance_scale=3.0,
            eta=eta,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            method=method,
            unet=unet,
            decoder=lambda values: decoder(values / 0.18215),
            **options,
        )

    return call


@pytest.mark.parametrize("case", CASES)
def test_against_the_published_code(case, run) -> None:
    method, size, steps, options = CASES[case]
    assert_equals(case, run(method, size, steps, native=64 if case == "syncdiffusion" else 16, **options))


def assert_equals(name: str, latents: torch.Tensor) -> None:
    published = PUBLISHED["equal"][name]
    assert latents.flatten()[:: latents.numel() // 8][:8].tolist() == pytest.approx(published["values"], rel=1e-6)
    assert float(latents.norm()) == pytest.approx(published["norm"], rel=1e-6)


def assert_departs(name: str, ours: torch.Tensor, published: torch.Tensor) -> None:
    """By the number in published.json, to its two digits."""
    found = float((ours - published).norm() / published.norm())
    assert float(f"{found:.1e}") == PUBLISHED["departs"][name]["relative_rms"]


PLAIN = {"dilate_tau": 0.6, "progressive": False, "damp_tau": 0.0}
DAMPED, DISPERSED = CASES["scalecrafter 4x progressive damped"][0], CASES["scalecrafter 2x dispersed"][0]
SYNC = CASES["syncdiffusion"][0]
SMALL_SYNC = replace(SYNC, window=16, stride=4)

# Ours and the published choice as settings; size, steps and options of both runs.
BY_SETTINGS = {
    "demofusion 2x, default blur": (replace(RELEASED, blur_padding="reflect"), RELEASED, (32, 32), 8, {}),
    "demofusion 2x, blur_kernel=paper": (replace(RELEASED, blur_kernel="paper"), RELEASED, (32, 32), 8, {}),
    "demofusion 2x, skip_dead_steps": (replace(RELEASED, skip_dead_steps=True), RELEASED, (32, 32), 20, {}),
    "scalecrafter damping={}": (replace(DAMPED, damping={}), DAMPED, (64, 64), 10, {"eta": 1.0}),
    "scalecrafter 2x dispersed, closed form": (
        replace(DISPERSED, dispersion="closed_form"), DISPERSED, (32, 32), 5, {}
    ),
    "scalecrafter 2x, SDXL": (
        ScaleCrafter({"level.2": 2.0}, **PLAIN), ScaleCrafter({"mid": 2.0, "up.0": 2.0}, **PLAIN), (32, 32), 5, {}
    ),
    "scalecrafter 16x32": (
        ScaleCrafter({"level.1": (1.0, 2.0), "level.2": (1.0, 2.0)}, **PLAIN),
        ScaleCrafter(TWICE, **PLAIN),
        (16, 32),
        5,
        {},
    ),
    "syncdiffusion, not clamped": (replace(SYNC, clamp=False), SYNC, (64, 128), 4, {"native": 64}),
    "syncdiffusion, not clamped, windows of 16": (replace(SMALL_SYNC, clamp=False), SMALL_SYNC, (16, 32), 4, {}),
}  # fmt: skip
LARGE = [pytest.mark.slow]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LARGE if name == "syncdiffusion, not clamped" else []) for name in BY_SETTINGS]
)
def test_departures_by_settings(name, run) -> None:
    ours, published, size, steps, options = BY_SETTINGS[name]
    assert_departs(name, run(ours, size, steps, **options), run(published, size, steps, **options))


def test_the_published_grid_leaves_columns_out(run) -> None:
    """They are in no window and become 0; the others never hear of them."""
    noise = torch.randn((1, 4, 24, 30), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = run(MultiDiffusion(stride=4), (24, 28), 8, latents=noise[..., :28])
    ours = run(MultiDiffusion(stride=4), (24, 30), 8, latents=noise)
    assert_departs("multidiffusion 24x30, stride 4", ours, functional.pad(covered, (0, 2)))
    assert (ours[..., :28] - covered).norm() > 0.01 * covered.norm()


@pytest.mark.heavy
@pytest.mark.parametrize("at_once", [16, 2])
def test_the_published_views_are_scaled_by_the_sigma_of_another_step(at_once, run, make_scheduler) -> None:
    """Only the first batch of a step finds the scheduler where it should be, and none in a later phase's first step."""
    steps = 8
    scheduler = make_scheduler("euler")
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    divisors = (scheduler.sigmas.double().square() + 1.0).sqrt()
    seen: list[int] = []

    def wrongly_scaled(denoiser):
        def denoise(latents, timestep, context):
            index = times.index(float(timestep))
            is_first = not seen or seen[-1] != index
            seen.append(index)
            if steps - 1 in seen[:-1]:  # the second phase
                found = index + 1 if not is_first else index or steps
                latents = latents * (divisors[index] / divisors[found])
            return denoiser(latents, timestep, context)

        return denoise

    options = {"name": "euler", "view_batch_size": at_once}
    published = run(RELEASED, (32, 32), steps, wrapped=wrongly_scaled, **options)
    assert_departs(
        f"demofusion 2x euler, {at_once} views at once", run(RELEASED, (32, 32), steps, **options), published
    )


class Leaving(View):
    """A window that may stand out of the latents by up to its own height, and sees zeros there."""

    def _inside(self, padded: torch.Tensor) -> torch.Tensor:
        top, left = self.top + self.height, self.left + self.height
        return padded[..., top : top + self.height, left : left + self.width]

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        return self._inside(functional.pad(latents, [self.height] * 4))

    def scatter_add(self, total: torch.Tensor, values: torch.Tensor) -> None:
        padded = functional.pad(torch.zeros_like(total), [self.height] * 4)
        self._inside(padded).add_(values)
        total += padded[..., self.height : -self.height, self.height : -self.height]


def leaving(views, size, limit, key) -> tuple[View, ...]:
    """Our jitter, with the windows at a border moved out of it, as the published code may."""
    generator = torch.Generator().manual_seed(key)

    def place(start: int, length: int, total: int, most: int) -> int:
        out = int(torch.randint(most + 1, (), generator=generator))
        return start - out if start == 0 else start + out if start == total - length else start

    return tuple(
        Leaving(
            place(view.top, view.height, size[0], limit[0]), place(view.left, view.width, size[1], limit[1]), *view.size
        )
        for view in jitter(views, size, limit, key)
    )


def test_published_jitter_shows_the_network_zeros(run, monkeypatch) -> None:
    ours = run(replace(RELEASED, jitter=True), (32, 32), 4)
    monkeypatch.setattr("seecoder.sampling.methods.multidiffusion.jitter", leaving)
    assert_departs("demofusion 2x, jitter", ours, run(replace(RELEASED, jitter=True), (32, 32), 4))


def test_published_pictures_begin_at_the_longer_side(run, monkeypatch) -> None:
    assert RELEASED.sizes((16, 32), (16, 16)) == [(12, 24), (16, 32)]
    ours = run(RELEASED, (16, 32), 4)
    monkeypatch.setattr(DemoFusion, "sizes", lambda self, size, native, *, is_panorama: [(8, 16), (16, 32)])
    assert_departs("demofusion 16x32", ours, run(RELEASED, (16, 32), 4))


@pytest.mark.heavy
def test_published_moments_are_those_of_the_whole_batch(run, monkeypatch) -> None:
    def of_all(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return latents.mean().expand(len(latents), 1, 1, 1), latents.std().expand(len(latents), 1, 1, 1)

    ours = run(RELEASED, (32, 32), 4, pictures=2)
    for module in ("dilated_sampling", "demofusion"):
        monkeypatch.setattr(f"seecoder.sampling.methods.demofusion.{module}.statistics", of_all)
    assert_departs("demofusion 2x, two pictures", ours, run(RELEASED, (32, 32), 4, pictures=2))


def test_published_strided_layers_lose_the_odd_row(run, monkeypatch) -> None:
    ours = run(ScaleCrafter(TWICE, **PLAIN), (38, 42), 10, eta=1.0)
    redilated = redilation_module.redilated

    @contextmanager
    def losing(conv: torch.nn.Conv2d, *rest: Any) -> Iterator[None]:
        def after(module, inputs, output):
            size = tuple(side // conv.stride[0] for side in inputs[0].shape[-2:])
            return output if output.shape[-2:] == size else functional.interpolate(output, size, mode="bilinear")

        with redilated(conv, *rest):
            handle = conv.register_forward_hook(after)
            yield
            handle.remove()

    monkeypatch.setattr(redilation_module, "redilated", losing)
    assert_departs("scalecrafter 38x42", ours, run(ScaleCrafter(TWICE, **PLAIN), (38, 42), 10, eta=1.0))


class LackingOne(MultiDiffusion):
    """Windows of a published loop: all but the last."""

    def views(self, native_size, size) -> tuple[View, ...]:
        return super().views(native_size, size)[:-1]


@pytest.mark.parametrize(
    ("window", "name"),
    [
        pytest.param(64, "syncdiffusion closed loop", marks=LARGE),
        (16, "syncdiffusion closed loop, windows of 16"),
    ],
)
def test_published_loops_lack_a_window_and_follow_another(window, name, run) -> None:
    settings = replace(SYNC, window=window, stride=window // 4, closed_loop=True)
    windows = LackingOne(window=window, stride=window // 4, closed_loop=True)
    size = (window, 2 * window)
    published = [windows, replace(settings, anchor=len(windows.views(size, size)) // 2)]
    ours = run(settings, size, 4, native=window)
    assert_departs(name, ours, run(published, size, 4, native=window))


def test_every_departure_says_by_how_much_and_why() -> None:
    assert all(entry["relative_rms"] > 0 and entry["why"] for entry in PUBLISHED["departs"].values())
    assert all(entry["relative_rms"] < 1e-6 for entry in PUBLISHED["equal"].values())
    assert PUBLISHED["equal"].keys() == CASES.keys()

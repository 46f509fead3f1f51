"""ScaleCrafter's published settings on the networks that they were published for, built without weights."""

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel

from seecoder.base_model.known_bases import base_sizes
from seecoder.sampling import ScaleCrafter
from seecoder.sampling.methods.scalecrafter.layer_settings import PUBLISHED, PUBLISHED_TWO_TO_ONE
from seecoder.sampling.methods.scalecrafter.redilation import split_factor
from seecoder.sampling.methods.unet_levels import select
from seecoder.sampling.randomness import Randomness
from seecoder.sampling.stages import Run
from seecoder.sampling.step import Step
from seecoder.sampling.stepper import Stepper

REPOSITORIES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks() -> dict[str, UNet2DConditionModel]:
    """The UNets of the released bases, shapes without numbers."""
    with torch.device("meta"):
        return {
            name: UNet2DConditionModel.from_config(dict(base_sizes(repository).unet))
            for name, repository in REPOSITORIES.items()
        }


@pytest.fixture
def crafted(networks, make_scheduler):
    """The patches of a network for a picture so many times as large, and its guidance's last step."""

    def build(name: str, scale: float):
        unet = networks[name]
        native = (unet.config["sample_size"],) * 2
        size = (int(native[0] * scale), int(native[1] * scale))
        randomness = Randomness(torch.Generator(), 1)
        run = Run(
            latent_shape=(1, 4, *size),
            native_size=native,
            stepper=Stepper(make_scheduler("ddim"), 50, eta=0.0, randomness=randomness, device=CPU),
            randomness=randomness,
            guidance_scale=7.5,
            guidance_rescale=0.0,
            device=CPU,
            dtype=torch.float32,
            unet=unet,
        )
        guidance = ScaleCrafter().guidance(run, size)
        return unet, size, native, ScaleCrafter().patches(run, size), getattr(guidance, "until", 0)

    return build


def reached(unet, patches, index: int, size, native) -> Counter[int]:
    """How many convolutions are dilated how far at a step (fractions rounded up: they enlarge their input, too)."""
    step = Step(index, 50, torch.tensor(981), 981.0, 1000, size, native)
    with patches[0].active(step, size):
        changed = [layer for layer in unet.modules() if "_conv_forward" in vars(layer)]
        factors = [split_factor(layer._conv_forward.args[1][0]) for layer in changed]  # (dilation, enlargement)
        found = Counter(dilation for dilation, _ in factors)
    assert sum(enlargement > 1.0 for _, enlargement in factors) in (0, found.total())
    return found


TWICE, MORE = {2: 39}, {3: 39}
FOUR_TIMES = {2: 12, 3: 12, 4: 15}
# By the published configurations: layers by dilation, of the network and of its weaker state, in the first step; and
# how many of 50 steps they last. The released SDXL settings name a level that SDXL lacks: at twice the side they reach
# 11 layers of the 15 here.
EXPECTED = {
    ("sd15", 2.0): (TWICE, {}, 30, 0),
    ("sd21", 2.0): (TWICE, {}, 20, 0),
    ("sd15", 2.5): (MORE, {}, 35, 0),
    ("sd21", 2.5): (MORE, {}, 30, 0),
    ("sd15", 4.0): (FOUR_TIMES, {3: 12, 4: 15}, 35, 35),
    ("sd21", 4.0): ({2: 6, 3: 11, 4: 23}, {3: 11, 4: 23}, 37, 37),
    ("sdxl", 2.0): ({2: 15}, {}, 30, 0),
    ("sdxl", 2.5): ({3: 15}, {}, 30, 0),
    ("sdxl", 4.0): ({2: 6, 3: 7, 4: 15}, {2: 11}, 35, 35),
}


@pytest.mark.parametrize(("name", "scale"), EXPECTED)
def test_published_settings_reach_their_layers_for_as_long_as_published(name, scale, crafted) -> None:
    dilated, damped, until, damped_until = EXPECTED[name, scale]
    unet, size, native, patches, guided_until = crafted(name, scale)
    assert reached(unet, patches["main"], 0, size, native) == dilated
    assert reached(unet, patches["main"], until - 1, size, native).total() == sum(dilated.values())
    assert reached(unet, patches["main"], until, size, native) == {}
    assert guided_until == damped_until
    assert set(patches) == ({"main", "damping"} if damped else {"main"})
    if damped:
        assert reached(unet, patches["damping"], 0, size, native) == damped
        assert reached(unet, patches["damping"], damped_until, size, native) == {}


def test_all_published_settings_are_counted_and_nothing_is_materialised(networks, crafted) -> None:
    assert EXPECTED.keys() == PUBLISHED.keys()
    totals = {key: sum(dilated.values()) for key, (dilated, *_) in EXPECTED.items()}
    assert {name: {totals[key] for key in totals if key[0] == name} for name in networks} == {
        "sd15": {39},
        "sd21": {39, 40},
        "sdxl": {15, 28},
    }
    for name, scale in PUBLISHED:
        unet, size, native, patches, _ = crafted(name, scale)
        for state in patches.values():
            reached(unet, state, 0, size, native)
    for unet in networks.values():
        assert all(tensor.is_meta for tensor in (*unet.parameters(), *unet.buffers()))


def test_settings_for_two_to_one_pictures_reach_the_layers_of_the_square_ones(networks) -> None:
    counts = {}
    for (name, _), settings in PUBLISHED_TWO_TO_ONE.items():
        dilated = [layer for pattern in settings.dilation for layer in select(networks[name], pattern)]
        assert len(set(dilated)) == len(dilated)
        counts[name] = (len(dilated), sum(len(select(networks[name], pattern)) for pattern in settings.damping))
    assert counts == {"sd21": (39, 0), "sdxl": (28, 11)}


def test_the_released_keys_that_sdxl_lacks_raise(networks) -> None:
    for pattern in ("down.3", "down.2.sampler", "up.2.sampler"):
        with pytest.raises(ValueError, match=f"{pattern!r} matches no convolution of this UNet, which has 3 levels"):
            select(networks["sdxl"], pattern)
    alive = {address for pattern in ("mid", "up.0") for address in select(networks["sdxl"], pattern)}
    meant = select(networks["sdxl"], "level.2")
    assert len(alive) == 11
    assert sorted(set(meant) - alive) == [f"down.2.resnets.{place}.conv{conv}" for place in (0, 1) for conv in (1, 2)]

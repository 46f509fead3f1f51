"""What people put beside the base, from the command line."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seecoder.cli import main
from seecoder.cli.conditions.adapters import adapter_arguments, check_guides, file_and_weight, place
from tests.fixtures.pipelines import (
    build_controlnet,
    build_image_encoder,
    build_ip_adapter,
    build_lora,
    build_t2i_adapter,
    build_unet,
)

NAME = "0001-first-one-seed0.png"
GIVEN = {"control_scale": [], "control_start": [], "control_end": [], "adapter_scale": [], "ip_adapter_image": None}
NONE = {"controlnet": [], "control_image": [], "adapter": [], "adapter_image": [], "ip_adapter": None, **GIVEN}


@pytest.fixture
def made(pictures, networks, tmp_path):
    """The pixels of `vary` with options, and the folder that they are in."""

    def run(*options, command="vary", size=()):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        assert main([command, pictures[0], *networks, *size, *map(str, options), "--out", str(out)]) == 0
        return (out / NAME).read_bytes(), out

    return run


def test_the_weight_of_a_file_stands_after_its_name() -> None:
    assert file_and_weight("a.safetensors=0.8") == ("a.safetensors", 0.8)
    assert file_and_weight("a.safetensors") == ("a.safetensors", 1.0)
    assert file_and_weight("a=b.safetensors") == ("a=b.safetensors", 1.0)
    assert file_and_weight("a=b.safetensors=-1") == ("a=b.safetensors", -1.0)


@pytest.mark.heavy
def test_loras_act_by_their_weights_and_are_recorded(made, tmp_path) -> None:
    pytest.importorskip("peft")
    for name, seed in (("one", 1), ("two", 2)):
        save_file(build_lora(build_unet(), seed=seed, size=1.0), tmp_path / f"{name}.v2.safetensors")
    one, two = tmp_path / "one.v2.safetensors", tmp_path / "two.v2.safetensors"
    plain, _ = made()
    first, out = made("--lora", one)
    assert first != plain
    options = json.loads((out / "settings.json").read_text())["options"]
    assert options["lora"] == [[str(one), 1.0]]
    assert made("--lora", f"{one}=0", "--lora", f"{two}=0")[0] == plain
    assert made("--lora", one, "--lora", f"{two}=0")[0] == first
    assert made("--lora", one, "--lora", two)[0] != first


@pytest.mark.heavy
def test_several_control_networks_have_pictures_and_numbers_of_their_own(made, pictures, tmp_path) -> None:
    for seed in (4, 5):
        build_controlnet(build_unet(), seed).save_pretrained(tmp_path / f"control{seed}")
        build_t2i_adapter(seed).save_pretrained(tmp_path / f"adapter{seed}")
    for kind, flag in (("control", "--controlnet"), ("adapter", "--adapter")):
        networks = [word for seed in (4, 5) for word in (flag, tmp_path / f"{kind}{seed}")]
        images = [f"--{kind}-image", pictures[0], f"--{kind}-image", pictures[1]]
        scale = f"--{kind}-scale"
        both = made(*networks, *images, scale, "1", scale, "0.5")[0]
        first = made(*networks, *images, scale, "1", scale, "0")[0]
        alone = made(*networks[:2], *images[:2])[0]
        assert both != first == alone != made()[0]


def test_control_has_a_span(made, pictures, tmp_path) -> None:
    build_controlnet(build_unet()).save_pretrained(tmp_path / "control")
    options = ["--controlnet", tmp_path / "control", "--control-image", pictures[1]]
    assert made(*options, "--control-end", "0")[0] == made()[0] != made(*options, "--control-start", "0.5")[0]


def test_an_ip_adapter_brings_its_image_encoder(made, pictures, tmp_path) -> None:
    weights = build_ip_adapter(build_unet())
    folder = tmp_path / "ip"
    build_image_encoder().save_pretrained(folder / "image_encoder")
    save_file({f"{part}.{k}": v for part, group in weights.items() for k, v in group.items()}, folder / "a.safetensors")
    options = ["--ip-adapter", folder / "a.safetensors", "--ip-adapter-image", pictures[1]]
    options[1] = f"{options[1]}=0.0"
    assert made(*options)[0] == made()[0]
    options[1] = options[1].replace("=0.0", "=1.0")
    assert made(*options)[0] != made()[0]
    wide = ["--height", "16", "--width", "48"]
    assert made(*options, command="panorama", size=wide)[0] != made(command="panorama", size=wide)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "nothere.safetensors"], "`--lora`=nothere.safetensors does not exist"),
        (
            ["--controlnet", str(Path(__file__).parent)],
            "`--controlnet` and `--control-image` work only together, as many of one",
        ),
        (["--adapter-image", "x.png"], "`--adapter` and `--adapter-image` work only together"),
        (["--ip-adapter", "x"], "`--ip-adapter` and `--ip-adapter-image` work only together"),
        (["--lora", f"{__file__}=nan"], "test_adapters.py=WEIGHT`=nan must be a number"),
        (["--offload", "model", "--device", "cpu"], "`--offload`=model has no effect on the CPU"),
    ],
)
def test_what_cannot_be_is_said(options, message, pictures, networks, tmp_path, capsys) -> None:
    assert main(["vary", pictures[0], *networks, *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_networks_that_were_saved_together_need_a_picture_each(tmp_path) -> None:
    for name in ("lines", "lines_1", "lines_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    given = Namespace(**{**NONE, "adapter": [f"{tmp_path}/lines/"], "adapter_image": ["p", "q", "r"]})
    check_guides(given)
    assert given.adapter == [f"{tmp_path}/lines", f"{tmp_path}/lines_1", f"{tmp_path}/lines_2"]
    given = Namespace(**{**NONE, "adapter": [f"{tmp_path}/lines"], "adapter_image": ["p"]})
    with pytest.raises(ValueError, match=r"as many of one as of the other; \[3, 1\] with all saved together"):
        check_guides(given)


def test_one_network_gets_its_values_alone_and_several_get_lists() -> None:
    one = Namespace(**{**NONE, "controlnet": ["a"], "control_image": ["p"], "control_scale": [0.5]})
    assert adapter_arguments(one) == {"control_image": "p", "controlnet_conditioning_scale": 0.5}
    two = Namespace(**{**NONE, "controlnet": ["a", "b"], "control_image": ["p", "q"], "control_end": [1.0, 0.5]})
    assert adapter_arguments(two) == {"control_image": ["p", "q"], "control_guidance_end": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("offload", "call"),
    [
        (None, "to"),
        ("model", "enable_model_cpu_offload"),
        ("sequential", "enable_sequential_cpu_offload"),
        ("group", "enable_group_offload"),
    ],
)
def test_each_way_of_offloading_is_diffusers_own(offload, call) -> None:
    called = []

    class Pipe:
        vae = torch.nn.Linear(1, 1, dtype=torch.float16)

        def upcasts_vae(self):
            return True

        def __getattr__(self, name):
            return lambda *args, **kwargs: called.append((name, *args, *kwargs.values()))

    place(Pipe(), offload, torch.device("mps"))
    assert called[0][:2] == (call, torch.device("mps"))
    layerwise = offload in ("sequential", "group")
    assert Pipe.vae.weight.dtype == (torch.float32 if layerwise else torch.float16)
    Pipe.vae.half()

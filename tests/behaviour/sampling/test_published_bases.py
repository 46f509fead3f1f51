"""Bases with the configurations that they are published with: every method, and plain latents as stock pipelines'."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

from seecoder import SeeCoderPipeline, SeeCoderXLPipeline
from seecoder.cli import main
from seecoder.encoder.context import save_context
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion
from seecoder.sampling.methods.perceptual import pyramid_distance
from tests.fixtures.published import BASES, XL, write_published

METHODS: dict[str, Any] = {
    "MultiDiffusion": MultiDiffusion(),
    "DemoFusion": DemoFusion(),
    "ScaleCrafter": ScaleCrafter(),
    "HiDiffusion": HiDiffusion(),
    "RectifiedHR": RectifiedHR(switch_at=(0.5,)),
    "SyncDiffusion": SyncDiffusion(sync_threshold=0.5, loss=pyramid_distance),
}
RESTARTING = ("DemoFusion", "RectifiedHR", "SyncDiffusion")


@pytest.fixture(params=BASES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / name, name)


@pytest.fixture
def pipe(name: str, folder: Path) -> Any:
    pipe: Any = (SeeCoderXLPipeline if name in XL else SeeCoderPipeline).from_base(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vectors(name: str) -> dict[str, torch.Tensor]:
    """What stands for one picture."""
    generator = torch.Generator().manual_seed(3)
    width = BASES[name][0]["cross_attention_dim"]
    given = {"context": torch.randn((1, 6, width), generator=generator)}
    return given | ({"pooled_context": torch.randn((1, 1280), generator=generator)} if name in XL else {})


def stock_of(name: str, pipe: Any) -> Any:
    """diffusers' own pipeline of the same networks."""
    parts = {"vae": pipe.vae, "unet": pipe.unet, "scheduler": pipe.scheduler}
    stock: Any
    if name in XL:
        texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        stock = StableDiffusionXLPipeline(**parts, **texts, add_watermarker=False)
    else:
        texts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        stock = StableDiffusionPipeline(**parts, **texts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock


def stock_vectors(name: str) -> dict[str, torch.Tensor]:
    """`vectors` under the names of stock pipelines, and zeros for the unconditional branch."""
    names = {"context": "prompt_embeds", "pooled_context": "pooled_prompt_embeds"}
    given = {names[key]: value for key, value in vectors(name).items()}
    return given | {f"negative_{key}": torch.zeros_like(value) for key, value in given.items()}


def test_plain_latents_are_those_of_the_stock_pipeline(name: str, folder: Path, pipe: Any) -> None:
    stock = stock_of(name, pipe)
    # SDXL-Turbo is published with 0, which is none; a distilled UNet is told the scale itself.
    for guidance in (3.0,) if name == "lcm" else (3.0, 0.0):
        shared: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "latent"}
        expected = stock(**stock_vectors(name), **shared, generator=torch.Generator().manual_seed(0)).images
        found = pipe(**vectors(name), **shared, generator=torch.Generator().manual_seed(0))
        assert found.notes == []
        assert torch.allclose(found.images, expected, rtol=1e-5, atol=1e-5)


def test_guidance_that_diffusers_callbacks_cut_off_is_cut_off_as_in_the_stock_pipeline(name: str, pipe: Any) -> None:
    cutoff = (SDXLCFGCutoffCallback if name in XL else SDCFGCutoffCallback)(cutoff_step_ratio=0.4)
    shared: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    found, expected, whole = (
        run(**given, **shared, generator=torch.Generator().manual_seed(0), callback_on_step_end=callback).images
        for run, given, callback in (
            (pipe, vectors(name), cutoff),
            (stock_of(name, pipe), stock_vectors(name), cutoff),
            (pipe, vectors(name), None),
        )
    )
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, whole) == (name == "lcm")  # which has none


@pytest.mark.parametrize("method", METHODS)
def test_every_method_samples_and_says_once_what_it_replaced(method: str, name: str, pipe: Any) -> None:
    side = pipe.unet.config.sample_size * 8
    output = pipe(
        **vectors(name),
        height=side,
        width=2 * side,
        method=METHODS[method],
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert output.images[0].size == (2 * side, side)
    is_replaced = BASES[name][2]["_class_name"] == "PNDMScheduler" and method in RESTARTING
    assert [note.split(" cannot")[0] for note in output.notes] == ["PNDMScheduler"] * is_replaced


def test_panoramas_are_made_and_say_once_what_was_replaced(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = vectors(name)
    save_context(tmp_path / "contexts.safetensors", given["context"], given.get("pooled_context"))
    options = ["--encoder", str(tmp_path / "contexts.safetensors"), "--out", str(tmp_path / "out"), "--steps", "3"]
    sizes = ["--height", "64", "--width", "128", "--device", "cpu", "--seed", "1", "2", "--wrap"]
    assert main(["panorama", "--base", str(folder), *options, *sizes]) == 0
    told = capsys.readouterr()
    assert (told.out + told.err).count("PNDMScheduler cannot") == (BASES[name][2]["_class_name"] == "PNDMScheduler")
    assert len(list((tmp_path / "out").glob("*seed*.png"))) == 2


@pytest.mark.parametrize("base", ["sd-1.5", "sdxl"])
def test_weights_in_several_files_are_read(base: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path / base, base, max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    whole = write_published(tmp_path / "whole", base)
    cls: Any = SeeCoderXLPipeline if base in XL else SeeCoderPipeline
    ours, expected = (cls.from_base(one).unet.state_dict() for one in (folder, whole))
    assert all(torch.equal(ours[key], value) for key, value in expected.items())

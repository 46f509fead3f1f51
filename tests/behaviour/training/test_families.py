"""Bases other than Stable Diffusion 1.x: velocity, a pooled vector and time ids, another size for the encoder."""

import csv

import pytest
import torch

from seecoder.base_model.facts import pooled_width
from seecoder.base_model.known_bases import base_sizes
from train.cli import build_parser
from train.settings import OptimizerSettings
from train.stages.seecoder import SeeCoderStage

POOLED = {"stage.init_args.encoder.pooled_dim": 24}


@pytest.fixture
def xl_config(settings, xl_base):
    return lambda **changes: settings(**{"stage.init_args.base": str(xl_base), **POOLED, **changes})


def make(config) -> SeeCoderStage:
    options = config["stage"]["init_args"]
    return SeeCoderStage(OptimizerSettings(), options["base"], options["encoder"], options["backbone_weights"])


def batch_of(count: int = 4, size: int = 32) -> dict:
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return {"pixels": pixels.to(torch.uint8), "keys": torch.stack([torch.zeros(count), torch.arange(count)], 1).long()}


@pytest.mark.heavy
def test_an_xl_base_trains_evaluates_previews_and_continues(xl_config, fit, load, tmp_path):
    preview = {"pictures": 2, "rows": 1, "steps": 2, "guidance_scale": 2.0}
    config = xl_config(**{"run.max_steps": 2, "stage.init_args.preview": preview})
    assert fit(config) == 0
    assert fit({**config, "run": {**config["run"], "max_steps": 4}}) == 0
    first, last = (load(tmp_path / "run" / f"step-0000000{step}.ckpt")["state_dict"] for step in (2, 4))
    for name in ("encoder.pooled_projection.weight", "encoder.query_transformer.queries"):
        assert not torch.equal(first[name], last[name])
    assert not any(name.startswith("unet.") for name in last)
    assert (tmp_path / "run" / "previews" / "step-00000004.png").is_file()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        figures = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert abs(figures["gap_shuffled"]) > 0


def test_the_pooled_vector_gets_its_gradient_and_is_exchanged_with_the_context(xl_config):
    stage = make(xl_config())
    torch.manual_seed(0)
    stage.loss(batch_of()).backward()
    weight = stage.encoder.pooled_projection.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


@pytest.mark.parametrize(("pooled", "base_name"), [(None, "xl_base"), (23, "xl_base"), (24, "base")])
def test_a_pooled_vector_that_the_base_cannot_take_is_refused_at_once(settings, request, pooled, base_name):
    config = settings(
        **{
            "stage.init_args.base": str(request.getfixturevalue(base_name)),
            "stage.init_args.encoder.pooled_dim": pooled,
        }
    )
    with pytest.raises(ValueError, match="pooled_dim"):
        make(config)


def test_the_encoder_may_see_another_size(settings):
    options = settings()["stage"]["init_args"]
    arguments = (OptimizerSettings(), options["base"], options["encoder"], options["backbone_weights"])
    small, whole = SeeCoderStage(*arguments, encoder_size=32).eval(), SeeCoderStage(*arguments).eval()
    batch = batch_of(size=64)
    shrunk = torch.nn.functional.interpolate(
        batch["pixels"].float() / 255, size=(32, 32), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        context = small.encode(batch, None)[0]
        assert torch.equal(context, whole.encoder(shrunk))
        assert not torch.equal(context, whole.encode(batch, None)[0])
        assert small.errors(batch, batch["keys"], small.uniform_timesteps(batch["keys"]), context, None).shape == (4,)
    assert small.moments(batch)[0].shape[-2:] == (16, 16)


@pytest.mark.parametrize("name", ["sd15", "sd15_position_aware", "sd21", "sdxl"])
def test_configs_fit_their_bases(name):
    parsed = build_parser().parse_args(["fit", "--config", f"configs/{name}.yaml"]).fit.stage.init_args
    sizes = base_sizes(parsed.base)
    assert sizes is not None
    assert parsed.encoder.get("context_dim", 768) == sizes.unet["cross_attention_dim"]
    assert parsed.encoder.get("pooled_dim") == pooled_width(sizes.unet)

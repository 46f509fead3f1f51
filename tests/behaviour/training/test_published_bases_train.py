"""Training on bases with the configurations that they are published with; the scheduler gives the betas alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seecoder.base_model.loading import load_part
from tests.fixtures.published import BASES, FOREIGN, REFUSED, XL, write_configurations, write_published
from tests.fixtures.single_files import write_checkpoint
from tests.fixtures.training import batch_of
from train.settings import OptimizerSettings
from train.stages.seecoder import SeeCoderStage


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in BASES if name not in ("lcm", "playground-2.5")])
def test_two_steps_are_trained(name: str, settings: Any, fit: Callable[..., int], tmp_path: Path) -> None:
    base = write_published(tmp_path / name, name)
    config = settings(**{"stage.init_args.base": str(base), "run.max_steps": 2, "run.checkpoint_every": 2})
    encoder_for(config, name)
    assert fit(config) == 0
    assert list((tmp_path / "run").glob("step-00000002.ckpt"))


def encoder_for(config: dict[str, Any], name: str) -> None:
    """Let the encoder of a configuration fit a base of `BASES`."""
    fits = {"context_dim": BASES[name][0]["cross_attention_dim"], "pooled_dim": 1280 if name in XL else None}
    config["stage"]["init_args"]["encoder"] |= fits


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_of_another_kind_is_refused_in_a_plan_and_before_the_first_step(
    name: str, settings: Any, fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, message = write_configurations(tmp_path / name, name)
    config = settings(**{"stage.init_args.base": str(base), "run.max_steps": 2})
    encoder_for(config, REFUSED[name][0])
    errors = []
    for arguments in ([], ["--plan"]):
        assert fit(config, *arguments) == 2
        errors.append(capsys.readouterr().err)
        assert message in errors[-1]
        assert errors[-1].count("\n") == 1
    assert errors[0] == errors[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_a_base_without_a_unet_is_refused(
    name: str, settings: Any, fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, class_name = FOREIGN[name]
    (tmp_path / name / part).mkdir(parents=True)
    (tmp_path / name / part / "config.json").write_text(json.dumps({"_class_name": class_name}))
    for arguments in ([], ["--plan"]):
        assert fit(settings(**{"stage.init_args.base": str(tmp_path / name)}), *arguments) == 2
        assert "has no `unet/`; give a diffusers folder with unet/, vae/ and scheduler/" in capsys.readouterr().err


def test_an_autoencoder_with_statistics_trains_on_latents_that_they_normalise(settings: Any, tmp_path: Path) -> None:
    """Playground 2.5's autoencoder with SDXL's noise: z = factor (x - mean) / std, as in sampling."""
    base = write_published(tmp_path / "playground-2.5", "playground-2.5")
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(BASES["sdxl"][2]))
    config = settings(**{"stage.init_args.base": str(base)})
    encoder_for(config, "playground-2.5")
    values = config["stage"]["init_args"]
    stage = SeeCoderStage(OptimizerSettings(), str(base), values["encoder"], values["backbone_weights"])
    pixels = batch_of(2)["pixels"]
    posterior = stage.vae.encode(pixels / 127.5 - 1).latent_dist
    mean, std = (torch.tensor(stage.vae.config[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    found = stage.moments({"pixels": pixels})
    torch.testing.assert_close(found[0], 0.5 * (posterior.mean - mean) / std)
    torch.testing.assert_close(found[1], 0.5 * posterior.std / std)


@pytest.mark.parametrize("said", [None, "epsilon", "v_prediction"])
def test_what_a_file_of_sd_2_predicts_can_be_said(
    said: Any, settings: Any, fit: Callable[..., int], tmp_path: Path, capsys
) -> None:
    folder = write_published(tmp_path / "sd-2.1", "sd-2.1")
    parts = {"model.diffusion_model.": load_part(folder, "unet"), "first_stage_model.": load_part(folder, "vae")}
    file = write_checkpoint(tmp_path / "sd-2.1.safetensors", parts)
    config = settings(**{"stage.init_args.base": str(file), "stage.init_args.prediction_type": said})
    encoder_for(config, "sd-2.1")
    values = config["stage"]["init_args"]
    encoder, backbone = values["encoder"], values["backbone_weights"]
    stage = SeeCoderStage(OptimizerSettings(), str(file), encoder, backbone, prediction_type=said)
    assert stage.schedule.prediction == (said or "v_prediction")
    assert fit(config, "--plan") == 0
    assert f"sd-2.1.safetensors), predicts {said or 'v_prediction'};" in capsys.readouterr().out


def test_weights_of_a_variant_are_trained_on(settings: Any, tmp_path: Path) -> None:
    """A folder with nothing but `*.fp16.safetensors` is read; of two kinds the named one."""
    base = write_published(tmp_path / "sd-1.5", "sd-1.5")
    for part in ("unet", "vae"):
        whole = base / part / "diffusion_pytorch_model.safetensors"
        whole.rename(whole.with_suffix(".fp16.safetensors"))
    config = settings()["stage"]["init_args"]
    encoder = {**config["encoder"], "context_dim": 768}

    def bias(variant: str | None) -> Any:
        stage = SeeCoderStage(OptimizerSettings(), str(base), encoder, config["backbone_weights"], variant=variant)
        return stage.unet.conv_out.bias

    only = bias(None)
    for part in ("unet", "vae"):
        tensors = load_file(base / part / "diffusion_pytorch_model.fp16.safetensors")
        moved = {name: tensor + 1 for name, tensor in tensors.items()}
        save_file(moved, base / part / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert torch.equal(bias("fp16"), only)
    assert torch.equal(bias(None), only + 1)

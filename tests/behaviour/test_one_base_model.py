"""One autoencoder is trained with, cached, previewed, sampled and evaluated on one scale; pickles get in nowhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from torch import Tensor

import train.stages.previews as previews
from data.cache import main as cache
from data.shards.caching.moments import MomentsSource, encode_moments
from data.shards.reading.shard_reader import ShardReader
from data.shards.shard_set import open_shards
from scripts.evaluation.counts import encode_latents
from seecoder import SeeCoderPipeline
from seecoder.pipelines.autoencoding import vae_encoder
from train.sources.world_data import encode_in_half
from train.stages.seecoder import SeeCoderStage

SIZE = 32
FACTOR = 0.7
MEAN, STD = (0.5, -0.25, 1.0, 0.125), (0.5, 2.0, 1.5, 0.75)
KINDS: dict[str, dict[str, Any]] = {
    "latents_mean": {"latents_mean": list(MEAN), "latents_std": list(STD)},
    "shift_factor": {"shift_factor": 0.25},
}
FLOAT: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}
HALF: dict[str, Any] = {"rtol": 2.0**-11, "atol": 2e-5}


class Oracle:
    """The equations in float64, written without the project: z = FACTOR * (x - shift) / std."""

    def __init__(self, base: Path, kind: str) -> None:
        self.vae: Any = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float64).eval()
        self.shift = np.reshape(MEAN if kind == "latents_mean" else [0.25] * 4, (1, 4, 1, 1))
        self.std = np.reshape(STD if kind == "latents_mean" else [1.0] * 4, (1, 4, 1, 1))

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of z for (N, 3, H, W) uint8 pixels."""
        posterior = self.vae.encode(pixels.double() / 127.5 - 1).latent_dist
        return FACTOR * (posterior.mean.numpy() - self.shift) / self.std, FACTOR * posterior.std.numpy() / self.std

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> np.ndarray:
        """Pixels in [0, 1] for z."""
        unscaled = torch.from_numpy(latents.double().numpy() * self.std / FACTOR + self.shift)
        return self.vae.decode(unscaled).sample.add(1).div(2).clamp(0, 1).numpy()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def scaled_base(base: Path, kind: str, tmp_path: Path) -> Path:
    """The base, whose autoencoder now asks for the kind of scaling."""
    folder = shutil.copytree(base, tmp_path / "scaled_base")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | KINDS[kind]))
    return folder


def assert_moments(found: Any, expected: tuple[np.ndarray, np.ndarray], tolerance: dict[str, Any]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.double().numpy(), theirs, **tolerance)


def member_moments(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation of all samples of shards, as they lie there."""
    shards = open_shards(folder)
    reader = ShardReader(shards, {MomentsSource.member()})
    places = [(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)]
    rows = [load_tensors(reader.read(*place)[MomentsSource.member()]) for place in places]
    return torch.stack([row["mean"] for row in rows]), torch.stack([row["std"] for row in rows])


@pytest.mark.heavy
def test_training_caching_previews_sampling_and_evaluation_share_one_scale(
    scaled_base: Path,
    kind: str,
    shards: Path,
    settings: Callable[..., dict[str, Any]],
    fit: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    oracle = Oracle(scaled_base, kind)
    trained: list[tuple[Tensor, Tensor, Tensor]] = []
    from_cache: list[Tensor] = []
    shown: list[tuple[Tensor, Tensor]] = []
    moments, decode = SeeCoderStage.moments, previews.decode_pixels

    def noted_moments(stage: SeeCoderStage, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        mean, std = moments(stage, batch)
        trained.append((batch["pixels"], mean, std))
        if "latent_mean" in batch and batch["latent_mean"].dtype == torch.float16:  # only a cache is in half precision
            from_cache.append(batch["pixels"])
        return mean, std

    def noted_decode(vae: Any, latents: Tensor) -> Tensor:
        shown.append((latents, decode(vae, latents)))
        return shown[-1][1]

    monkeypatch.setattr(SeeCoderStage, "moments", noted_moments)
    monkeypatch.setattr(previews, "decode_pixels", noted_decode)

    # Training on raw shards, with a preview sheet; then on a cache of the same pictures.
    preview = {"pictures": 2, "rows": 1, "steps": 2, "guidance_scale": 2.0}
    changes = {"stage.init_args.base": str(scaled_base), "run.max_steps": 2}
    assert fit(settings(**changes, **{"stage.init_args.preview": preview})) == 0
    assert trained
    assert shown
    assert not from_cache
    for pixels, *found in trained:
        assert_moments(found, oracle.moments(pixels), FLOAT)
    for latents, found in shown:
        np.testing.assert_allclose(found.double().numpy(), oracle.pixels(latents), **FLOAT)

    arguments = [str(shards), str(tmp_path / "cached"), "--base", str(scaled_base), "--size", str(SIZE)]
    assert cache([*arguments, "--device", "cpu"]) == 0
    trained.clear()
    changes |= {"data.init_args.shards": str(tmp_path / "cached"), "run.folder": str(tmp_path / "on the cache")}
    assert fit(settings(**changes)) == 0
    for pixels, *found in trained:
        assert_moments(found, oracle.moments(pixels), HALF)

    # The same pictures as members of shards, in the pipeline, in evaluation, in the world's own source.
    raw = torch.cat(from_cache)
    mean, std = member_moments(tmp_path / "cached")
    assert len(mean) == len(std) == 24
    distances = (mean[None].double() - torch.from_numpy(oracle.moments(raw)[0])[:, None]).flatten(2).abs().amax(2)
    assert float(distances.amin(1).max()) < 5e-3  # each is there, in half precision
    pipe: Any = SeeCoderPipeline.from_base(scaled_base)
    pipe.set_progress_bar_config(disable=True)
    pixels = raw[:3]
    expected = oracle.moments(pixels)
    inputs = pixels.float() / 255
    with torch.no_grad():
        encoded = vae_encoder(pipe.vae, 6.0, [])(2 * inputs - 1)
    np.testing.assert_allclose(encoded.double().numpy(), expected[0], **FLOAT)
    np.testing.assert_allclose(encode_latents(pipe, inputs).double().numpy(), expected[0], **FLOAT)
    assert_moments(encode_moments(pipe.vae, inputs), expected, FLOAT)
    assert_moments(encode_in_half(pipe.vae, pixels), expected, HALF)

    # And sampling decodes what it sampled on that scale.
    context = torch.randn((1, 4, 32), generator=torch.Generator().manual_seed(0))
    pictures = {}
    for form in ("latent", "pt"):
        options: dict[str, Any] = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
        pictures[form] = pipe(context=context, output_type=form, **options).images
    np.testing.assert_allclose(pictures["pt"].double().numpy(), oracle.pixels(pictures["latent"]), **FLOAT)


@pytest.mark.parametrize("kind", ["latents_mean"], indirect=True)
def test_a_cache_of_another_scale_is_refused(scaled_base, settings, fit, cached, capsys) -> None:
    """What was cached with the plain autoencoder is of no use to one with statistics, and says so."""
    changes = {"stage.init_args.base": str(scaled_base), "data.init_args.shards": str(cached)}
    assert fit(settings(**changes)) == 2
    assert "holds moments of" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_pickles_are_refused_by_everything_that_reads_a_base(
    base: Path, part: str, shards: Path, settings: Any, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    file = folder / part / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        SeeCoderPipeline.from_base(folder)
    sentence = str(caught.value)
    assert "Only safetensors files are read" in sentence
    config = settings(**{"stage.init_args.base": str(folder)})
    assert fit(config) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert fit(config, "--plan") == 2
    assert capsys.readouterr().err == f"python -m train: {sentence}\n"
    if part == "vae":  # a cache needs nothing else
        arguments = [str(shards), str(tmp_path / "out"), "--base", str(folder), "--size", str(SIZE), "--device", "cpu"]
        assert cache(arguments) == 2
        assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()

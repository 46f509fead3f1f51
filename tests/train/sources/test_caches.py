"""A plan counts what the run will do with what is cached, and refuses what it would refuse."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import train.stages.seecoder
from seecoder import SeeCoder
from tests.fixtures.training import BUCKETS
from train.cli import main
from train.stages.seecoder import SeeCoderStage

QUIET = {"data.init_args.held_out": 0, "data.init_args.held_out_world": False, "run.checkpoint_every": 100}


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def run(config: dict[str, Any]) -> int:
        path = tmp_path / "config-in.yaml"
        path.write_text(json.dumps(config))
        return main(["plan", "--config", str(path)])

    return run


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pictures that the losses of a run saw, and those that the autoencoder and the backbone worked on meanwhile."""
    counts = {"pictures": 0, "autoencoder": 0, "backbone": 0}
    loss, moments, maps = SeeCoderStage.loss, train.stages.seecoder.encode_moments, SeeCoder.compute_maps

    def of_moments(vae: Any, pixels: Any) -> Any:
        counts["autoencoder"] += len(pixels)
        return moments(vae, pixels)

    def of_maps(self: Any, pixels: Any) -> Any:
        counts["backbone"] += len(pixels)
        return maps(self, pixels)

    def of_loss(self: Any, batch: Any) -> Any:
        counts["pictures"] += len(batch["pixels"])
        with monkeypatch.context() as patch:
            patch.setattr(train.stages.seecoder, "encode_moments", of_moments)
            patch.setattr(SeeCoder, "compute_maps", of_maps)
            return loss(self, batch)

    monkeypatch.setattr(SeeCoderStage, "loss", of_loss)
    return counts


def flops(text: str) -> dict[str, float]:
    """Operations by part, as a plan prints them."""
    (line,) = (line for line in text.splitlines() if line.startswith("flops"))
    return {name: float(count) for name, count in re.findall(r"[(;] ?([a-z ]+) ([\d.e-]+) GFLOP", line)}


NO_LATENTS, NO_MAPS = {"data.init_args.cached_moments": False}, {"data.init_args.cached_maps": False}
IN_BUCKETS = {"data.init_args.buckets": BUCKETS}
SMALL = {"stage.init_args.encoder_size": 64}
OTHER = {"data.init_args.image_member": "png"}
CASES = {
    "raw": (["shards"], {}, (0, 0), "beside 0% of the pictures, backbone maps beside 0%"),
    "latents": (["cached"], {}, (1, 0), "beside 100% of the pictures, backbone maps beside 0%"),
    "both": (["with_maps"], {}, (1, 1), "beside 100% of the pictures, backbone maps beside 100%"),
    "mixed": (["with_maps", "shards"], {}, (0.5, 0.5), "beside 50% of the pictures, backbone maps beside 50%"),
    "no latents": (["cached"], NO_LATENTS, (0, 0), "100% (left aside: `cached_moments` is false) of the pictures"),
    "no maps": (["with_maps"], NO_MAPS, (1, 0), "maps beside 100% (left aside: `cached_maps` is false)"),
    "another member": (["with_maps"], OTHER, (0, 0), "100% (left aside: `image_member` is set, and they are of the"),
    "another size": (["with_maps"], SMALL, (1, 0), "maps beside 100% (left aside: `encoder_size` is set)"),
}


@pytest.fixture(scope="module")
def raw_flops() -> dict[bool, dict[str, float]]:
    """Operations of runs without caches, once planned: whether the encoder sees small pictures, and the parts."""
    return {}


@pytest.mark.heavy
@pytest.mark.parametrize("name", CASES)
def test_the_plan_counts_what_the_run_encodes(settings, plan, fit, encoded, raw_flops, request, capsys, name):
    kinds, changes, (latents, maps), said = CASES[name]
    places = [str(request.getfixturevalue(kind)) for kind in kinds]
    config = settings(**QUIET, **changes, **{"data.init_args.shards": places, "run.max_steps": 3 * len(places)})
    config["data"]["init_args"]["batch_size"] = 8
    is_small = changes == SMALL
    if is_small not in raw_flops:
        assert plan(settings(**(SMALL if is_small else {}))) == 0
        raw_flops[is_small] = flops(capsys.readouterr().out)
    capsys.readouterr()
    assert plan(config) == 0
    out = capsys.readouterr().out
    assert said in next(line for line in out.splitlines() if line.startswith("data"))
    assert fit(config) == 0  # one epoch
    shares = {part: encoded[part] / encoded["pictures"] for part in ("autoencoder", "backbone")}
    assert shares == {"autoencoder": 1 - latents, "backbone": 1 - maps}
    counted = flops(out)
    for part, count in raw_flops[is_small].items():
        assert counted.get(part, 0) == pytest.approx(shares.get(part, 1) * count, rel=1e-2), (
            part
        )  # 3 digits are printed


def without_mirrored(folder: Path, copy: Path) -> Path:
    """Cached shards whose manifest says that pictures were not mirrored."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("moments", "maps"):
        if name in manifest["settings"]:
            manifest["settings"][name]["flipped"] = False
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


REFUSED = {
    "random crop": ("cached", {"data.init_args.crop": "random"}, "`crop`='random'"),
    "another size": ("cached", {"data.init_args.image_size": 64}, "64 x 64 pixels"),
    "another dtype": ("cached", {"stage.init_args.vae_dtype": "bfloat16"}, "in bfloat16"),
    "maps of another dtype": ("with_maps", {"stage.init_args.frozen_dtype": "bfloat16"}, "holds maps of"),
    "maps, random crop": ("with_maps", {"data.init_args.crop": "random", **NO_LATENTS}, "holds maps of"),
    "buckets": ("cached", IN_BUCKETS, "in steps of 16, up to 2.0 : 1, center crop"),
    "other buckets": (
        "cached_buckets",
        {"data.init_args.buckets": {**BUCKETS, "resolutions": [48]}},
        "buckets of 48 x 48, 96 x 96 pixels in steps of 16",
    ),
    "squares": ("cached_buckets", {}, "buckets of 48 x 48, 96 x 96 pixels in steps of 16"),
    "buckets, random crop": ("cached_buckets", {**IN_BUCKETS, "data.init_args.crop": "random"}, "`crop`='random'"),
    "buckets, maps": ("with_maps", {**IN_BUCKETS, **NO_LATENTS}, "holds maps of"),
    "buckets, a set of random crops": ("cached_buckets", IN_BUCKETS, "`crop`='random'"),
    "not mirrored": ("cached", {"data.init_args.flip": True}, "no moments of mirrored pictures"),
    "maps not mirrored": ("with_maps", {"data.init_args.flip": True, **NO_LATENTS}, "no maps of mirrored pictures"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", REFUSED)
def test_the_plan_refuses_what_the_run_refuses(settings, plan, fit, request, tmp_path, capsys, name):
    kind, changes, said = REFUSED[name]
    folder = request.getfixturevalue(kind)
    if "mirrored" in name:
        folder = without_mirrored(folder, tmp_path / "copy")
    places: Any = {"shards": str(folder), "crop": "random"} if "a set" in name else str(folder)
    config = settings(**QUIET, **changes, **{"data.init_args.shards": [places]})
    capsys.readouterr()  # of the caches, where this test is the first to want them
    for command in (plan, fit):
        assert command(config) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m train: ")
        assert said in line
    left = {"data.init_args.cached_moments": False, "data.init_args.cached_maps": False}
    assert plan(settings(**{**QUIET, **changes, **left, "data.init_args.shards": str(folder)})) == 0


@pytest.mark.parametrize("place", ["/not/built/yet", "https://example.org/shards"])
def test_of_shards_that_nobody_looked_at_the_plan_says_what_it_assumes(settings, plan, capsys, tmp_path, place):
    changes = {"data.init_args.shards": place, "data.init_args.cache": str(tmp_path / "fetched")}
    assert plan(settings(**changes)) == 0
    out = capsys.readouterr().out
    assert "not looked at" in out
    assert "assume raw pictures, neither latents nor maps cached" in out
    assert {"autoencoder", "backbone"} < set(flops(out))


@pytest.mark.heavy
def test_a_folder_is_looked_at_even_if_others_would_be_fetched(settings, plan, cached, capsys, tmp_path):
    changes = {"data.init_args.shards": str(cached), "data.init_args.cache": str(tmp_path / "fetched")}
    assert plan(settings(**changes)) == 0
    assert "cached latents beside 100%" in capsys.readouterr().out


def test_a_stage_without_caches_is_told_nothing_of_them(settings, plan, cached, capsys):
    assert main(["plan", "--config", "configs/world_diffusion.yaml"]) == 0
    assert "cached" not in capsys.readouterr().out

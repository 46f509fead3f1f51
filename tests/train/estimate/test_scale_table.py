"""`python -m train scale`: what it prints, what it refuses."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import train.estimate.scale_table
from train.cli import build_parser, main
from train.estimate.costs import Costs
from train.estimate.hardware import Cluster, Hardware
from train.estimate.planning import plain
from train.estimate.prediction import predict
from train.estimate.scale_table import describe
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
COSTS = Costs(trained=10**8, frozen={"backbone": 0}, flops=FLOPS, activation_bytes=0)


@pytest.fixture
def counted(monkeypatch):
    """Round costs in place of those that take seconds to count."""
    monkeypatch.setattr(train.estimate.scale_table, "count_chosen", lambda _, options, *rest: (dict(options), COSTS))


def rows(text: str, gpus: int) -> list[list[str]]:
    """Cells of the rows for a number of GPUs."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {gpus:,} |")]


def test_the_published_plan_on_four_sizes(counted, capsys):
    assert main(["scale", "--config", PUBLISHED]) == 0
    out = capsys.readouterr().out
    assert "100,000 steps of 512 pictures" in out
    assert out.count("ASSUMED") == 4
    assert rows(out, 1)[0][1:3] == ["512", "16 x 32"]
    assert rows(out, 16)[0][1:3] == ["512", "1 x 32"]
    assert [row[1:3] for row in rows(out, 128)[::2]] == [["512", "1 x 4"], ["4,096", "1 x 32"]]
    assert "512 pictures are fewer than GPUs" in rows(out, 1024)[0][-1]
    assert rows(out, 1024)[1][1:3] == ["32,768", "1 x 32"]
    assert re.search(r"1,024 GPUs: 64 x 512 pictures in 1,562 steps, .* = 0.0064 or x 8 = 0.0008", out)


def test_speed_and_time_are_those_of_the_prediction(counted, capsys):
    assert main(["scale", "--config", PUBLISHED, "--gpus", "16"]) == 0
    (cells, _) = rows(capsys.readouterr().out, 16)
    parsed = build_parser().parse_args(["scale", "--config", PUBLISHED]).scale
    run = RunSettings(**parsed.run.as_dict())
    cluster = Cluster(shards=51_200)
    work = describe(run, plain(parsed.stage.init_args), plain(parsed.data.init_args), COSTS, Hardware(), cluster)
    expected = predict(work, cluster, 16, 32)
    assert cells[4] == f"{expected.images_per_second:,.0f}"
    assert cells[6] == f"{51_200_000 / expected.images_per_second / 86400:.1f} days"
    rate = 312e12 * 0.28
    assert work.picture_seconds == pytest.approx(6e12 / rate)
    assert work.hideable == pytest.approx(1 / 3)
    assert work.gradient_bytes == 4 * 10**8
    evaluation = 64 * (2.4e12 + 3 * 8e11)  # encoder and autoencoder; own, shuffled and no context
    previews = 8 * 2 * 50 * 2 * 8e11  # pictures, rows, steps, with and without context
    assert work.rank_zero_seconds == pytest.approx((evaluation + previews) / rate / 1000)


def test_what_breaks_first_changes_with_the_cluster(counted, capsys):
    def first(*arguments: str) -> str:
        assert main(["scale", "--config", PUBLISHED, "--gpus", "16", *arguments]) == 0
        return rows(capsys.readouterr().out, 16)[0][-1]

    assert first().startswith("nothing; next: fixed cost")
    assert first("--cluster.shards", "127") == "readers of shards, 128 of at most 127; refused"
    assert first("--cluster.storage_gb", "0.01").startswith("storage, 0.0")
    assert first("--cluster.network_gb", "0.01").startswith("exchange, ")
    assert first("--cluster.decodes_per_core", "1").startswith("loader, ")


def test_doubling_names_the_first_to_break(counted, capsys):
    assert main(["scale", "--config", PUBLISHED, "--cluster.shards", "1000", "--cluster.fixed_seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert "at 128, readers of shards, 1,024 of at most 1,000; refused" in out


def test_shards_that_are_there_count(settings, tmp_path, capsys):
    path = tmp_path / "config-in.yaml"
    path.write_text(json.dumps(settings()))
    assert main(["scale", "--config", str(path), "--gpus", "1", "2", "4"]) == 0
    out = capsys.readouterr().out
    assert "3 shards of 8" in out
    assert "1 of at most 3" in rows(out, 1)[1][1]
    assert rows(out, 4)[-1][1] == "4 of at most 3"
    assert not (tmp_path / "run").exists()


BAD = [
    (["--gpus", "0"], "`gpus`=0"),
    (["--gpus", "many"], "many"),
    (["--gpus", "1.5"], "1.5"),
    (["--cluster.storage_gb", "-1"], "`cluster.storage_gb`=-1"),
    (["--cluster.storage_gb", ".nan"], "`cluster.storage_gb`=nan"),
    (["--cluster.shards", "0"], "`cluster.shards`=0"),
    (["--cluster.gpus_per_node", "0"], "`cluster.gpus_per_node`=0"),
    (["--hardware.device", "abacus"], "abacus"),
    (["--stage.init_args.base", "somebody/some-model"], "somebody/some-model"),
    (["--stage.init_args.encoder.context_dim", "64"], "64"),
    (["--config", "configs/world_diffusion.yaml"], "train.stages.diffusion.WorldDiffusionStage is not counted"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(counted, capsys, arguments, named):
    assert main(["scale", *([] if "--config" in arguments else ["--config", PUBLISHED]), *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.strip().splitlines()) == 1
    assert named in captured.err


def test_every_assumption_may_be_changed_and_zero_only_where_it_makes_sense():
    for field in fields(Cluster):
        may_be_zero = field.name.endswith("_us") or field.name in ("fixed_seconds", "opening_ms", "restart_minutes")
        if may_be_zero:
            Cluster(**{field.name: 0})
        else:
            with pytest.raises(ValueError, match=rf"`cluster.{field.name}`=0 must be above 0"):
                Cluster(**{field.name: 0})
        with pytest.raises(ValueError, match="finite"):
            Cluster(**{field.name: float("inf")})


def test_fit_knows_nothing_of_clusters():
    parser = build_parser()
    assert "cluster" not in parser.parse_args(["plan", "--config", PUBLISHED]).plan
    assert Path(PUBLISHED).is_file()

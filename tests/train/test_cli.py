import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

import train.settings
from data.shards.reading.skips import NoReadableSample
from seecoder.base_model.loading import load_part
from tests.fixtures.single_files import write_checkpoint
from train.cli import _SLOW, COMMANDS, _print_error, build_parser, main
from train.settings import RunSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_begins_with_its_command(path):
    text = path.read_text()
    header = text[: text.index("resume:")]
    assert f"--config configs/{path.name}" in header
    assert all(line.startswith("#") for line in header.strip().splitlines())
    for word in ("Needs:", "Expect", "Writes:"):
        assert word in header
    config = build_parser().parse_args(["fit", "--config", str(path)]).fit
    given = yaml.safe_load(text)
    assert config.run.max_steps == given["run"]["max_steps"]
    assert config.stage.class_path == given["stage"]["class_path"]


def test_the_published_batch_is_reached_by_accumulation_on_any_number_of_devices():
    path = Path(__file__).parents[2] / "configs" / "sd15.yaml"
    for devices, nodes, expected in ((1, 1, 16), (8, 1, 2), (8, 2, 1), (4, 1, 4)):
        arguments = ["fit", "--config", str(path), "--run.devices", str(devices), "--run.num_nodes", str(nodes)]
        parsed = build_parser().parse_args(arguments).fit
        assert _run_settings(parsed.run).micro_batches(parsed.data.init_args.batch_size) == expected
    with pytest.raises(ValueError, match="global_batch"):
        _run_settings(parsed.run, devices=3).micro_batches(32)


@pytest.mark.parametrize("name", ["sd15", "sd15_position_aware", "sd21", "sdxl"])
def test_published_plans_throw_spikes_of_norm_and_loss_away(name):
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    options = build_parser().parse_args(["fit", "--config", str(path)]).fit.stage.init_args
    assert (options.guard.max_norm_ratio, options.guard.max_loss_ratio) == (50, 10)


def _run_settings(parsed, **changes):
    return RunSettings(**{**parsed.as_dict(), **changes})


BAD = [
    (["--run.no_such_key", "3"], "no_such_key"),
    (["--run.max_steps", "many"], "max_steps"),
    (["--run.max_steps", "0"], "max_steps"),
    (["--run.precision", "bf16-true"], "precision"),
    (["--run.strategy", "deepspeed_stage_2_offload"], "deepspeed_stage_2_offload"),
    (["--run.strategy", "deepspeed_stage_3"], "deepspeed_stage_3"),
    (["--run.precision", "16-mixed"], "must be bf16-mixed or 32-true: 16-mixed would scale the loss"),
    (["--stage.init_args.no_such_key", "3"], "no_such_key"),
    (["--stage.init_args.optimizer.lr", "high"], "lr"),
    (["--stage.init_args.optimizer.lr", "-1"], "lr"),
    (["--stage.init_args.base", "/no/such/folder"], "/no/such/folder"),
    (["--stage.init_args.backbone_weights", "/no/such/file"], "/no/such/file"),
    (["--stage.init_args.init_from", "/no/such/file"], "/no/such/file"),
    (["--stage.init_args.encoder.no_such_key", "3"], "no_such_key"),
    (["--stage.init_args.encoder.context_dim", "30"], "context_dim"),
    (["--data.init_args.shards", "/no/such/folder"], "/no/such/folder"),
    (["--data.init_args.batch_size", "0"], "batch_size"),
    (["--run.global_batch", "7"], "global_batch"),
    (["--run.global_batch", "0"], "`global_batch`=0"),
    (["--run.global_batch", "4", "--run.accumulate", "3"], "`accumulate`=3"),
    (["--run.accelerator", "abacus"], "`accelerator`='abacus'"),
    (["--run.strategy", "fastest"], "`strategy`='fastest'"),
    (["--run.threads", "0"], "`threads`=0"),
    (["--data.init_args.num_workers", "-1"], "`num_workers`=-1"),
    (["--data.init_args.num_workers", "7"], "7 readers"),
    (["--data.init_args.window", "0"], "`window`=0"),
    (["--data.init_args.ceiling", "2"], "`ceiling`=2"),
    (["--data.init_args.image_size", "30"], "`image_size`=30 must be at least 32, and a multiple of 4"),
    (["--data.init_args.held_out", "-1"], "`held_out`=-1"),
    (["--data.init_args.held_out_shards", "/no/such/held/out"], "/no/such/held/out"),
    (["--data.init_args.held_out_world", "no", "--data.init_args.held_out_shards", "/no/such/held/out"], "/no/such"),
    (["--stage.init_args.encoder_size", "30"], "`encoder_size`=30"),
    (["--stage.init_args.min_snr_gamma", "-1"], "`min_snr_gamma`=-1"),
    (["--config", "/no/such/config.yaml"], "config"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(settings, fit, capsys, tmp_path, arguments, named):
    assert fit(settings(), *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python -m train: ")
    assert named in lines[0]
    assert not re.search("subtypes|Namespace|class_path", lines[0])  # the parser's internals
    assert len(lines[0]) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_a_key_that_stands_twice_is_refused_before_anything_is_read(settings, capsys, monkeypatch, tmp_path, command):
    text = yaml.safe_dump(settings())
    path, line = tmp_path / "config.yaml", text.splitlines().index("  max_steps: 6") + 1
    path.write_text(text.replace("  max_steps: 6\n", "  max_steps: 6\n  max_steps: 60\n"))
    monkeypatch.setattr("train.cli._add_classes", None)  # by which stages and data are imported
    assert main([command, "--config", str(path)]) == 2
    words = f"`run.max_steps` stands twice, in lines {line} and {line + 1}: one would be lost. Keep one."
    assert capsys.readouterr() == ("", f"python -m train: {words}\n")


PLANNED = ("global_batch", "accelerator", "strategy", "threads", "num_workers", "window", "ceiling", "image_size")
PLANNED += ("held_out", "encoder_size", "min_snr_gamma")


@pytest.mark.parametrize(
    "arguments", [arguments for arguments, _ in BAD if arguments[-2].endswith(PLANNED)], ids=" ".join
)
def test_a_plan_refuses_what_the_run_refuses(settings, fit, capsys, arguments):
    assert fit(settings(), *arguments, "--plan") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_base_that_cannot_be_reached_is_named(settings, fit, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert fit(settings(**{"stage.init_args.base": "owner/name"})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m train: `base`=owner/name does not exist on this disk or on the Hub: ")
    assert "cannot be reached" in line


@pytest.mark.heavy
def test_a_base_in_one_file_is_planned_and_trained_on(settings, fit, base, capsys, tmp_path):
    networks = {"model.diffusion_model.": load_part(base, "unet"), "first_stage_model.": load_part(base, "vae")}
    path = write_checkpoint(tmp_path / "base.safetensors", networks)
    changed = settings(**{"stage.init_args.base": str(path), "run.max_steps": 2})
    assert fit(changed, "--plan") == 0
    assert (
        f"base     {path} (configurations in {path}), predicts epsilon; no weights were read" in capsys.readouterr().out
    )
    assert fit(changed) == 0
    assert (tmp_path / "run").is_dir()


def test_plan_and_run_refuse_a_base_in_the_same_sentence(settings, fit, base, capsys, tmp_path):
    shutil.copytree(base, tmp_path / "inpainting")
    file = tmp_path / "inpainting" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))
    changed = settings(**{"stage.init_args.base": str(tmp_path / "inpainting")})
    assert (fit(changed), fit(changed, "--plan")) == (2, 2)
    run, plan = capsys.readouterr().err.splitlines()
    assert run == plan
    assert run.startswith("python -m train: `in_channels`=9 of the base's UNet must be 4")


def test_a_gpu_that_is_not_there_is_one_line(settings, fit, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert fit(settings(), "--run.accelerator", "gpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`accelerator`=gpu" in line
    assert "--run.accelerator cpu" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(settings, fit, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert fit(settings(**{"run.folder": str(tmp_path / "file" / "run")})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line


def test_what_goes_wrong_in_training_keeps_its_traceback(settings, fit, monkeypatch):
    from train.stages.seecoder import SeeCoderStage

    def wrong(stage, batch):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(SeeCoderStage, "loss", wrong)
    with pytest.raises(ValueError, match="a mistake of ours"):
        fit(settings())


def test_shards_of_which_nothing_can_be_read_end_a_run_in_one_line(settings, fit, shards, tmp_path, capfd):
    gone = tmp_path / "gone"
    shutil.copytree(shards, gone)
    for shard in gone.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert fit(settings(**{"data.init_args.shards": str(gone), "data.init_args.ceiling": 1.0})) == 1
    assert "No readable sample" in capfd.readouterr().err.splitlines()[-1]


def test_an_unusable_manifest_is_named(settings, fit, shards, tmp_path, capsys):
    odd = shutil.copytree(shards, tmp_path / "odd")
    for text in ('{"format": 99, "version": 7}', "{"):
        (odd / "manifest.json").write_text(text)
        for more in ([], ["--plan"]):
            assert fit(settings(**{"data.init_args.shards": str(odd)}), *more) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"`{odd}/manifest.json` is no usable manifest" in line


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), FileExistsError("there"), PermissionError("not yours")])
def test_files_that_fail_in_training_keep_their_traceback(settings, fit, monkeypatch, error):
    from train.stages.seecoder import SeeCoderStage

    def fails(stage):
        raise error

    monkeypatch.setattr(SeeCoderStage, "evaluate", fails)
    with pytest.raises(type(error)):
        fit(settings())


def test_what_a_reader_says_before_the_first_batch_is_one_line(settings, fit, monkeypatch, capsys):
    wrapped = "Caught PermissionError in DataLoader worker process 0.\nOriginal Traceback\nPermissionError: not yours"

    def fails(*_, **__):
        raise PermissionError(wrapped)

    monkeypatch.setattr("train.sources.shard_data.ShardPictures.train_dataloader", fails)
    assert fit(settings()) == 2
    assert capsys.readouterr().err == "python -m train: not yours\n"


def test_a_readers_traceback_is_left_out(capsys):
    wrapped = "Caught NoReadableSample in DataLoader worker process 0.\nOriginal Traceback\nx.NoReadableSample: gone"
    assert _print_error(NoReadableSample(wrapped), 1) == 1
    assert capsys.readouterr().err == "python -m train: gone\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_weights_are_loaded_ends_with_143(settings, fit, monkeypatch, tmp_path, number):
    before = signal.getsignal(number)
    monkeypatch.setattr("train.stages.seecoder.load_frozen", lambda *_, **__: os.kill(os.getpid(), number))
    assert fit(settings()) == 143
    assert signal.getsignal(number) == before
    assert not (tmp_path / "run").exists()


def test_no_command_is_bad_input(capsys):
    assert main([]) == 2
    assert "command" in capsys.readouterr().err


def test_a_run_keeps_no_password_of_its_shards(settings, fit, monkeypatch, capsys):
    kept = {}

    def note(ready, provenance, notes):
        kept.update(config=provenance.config, notes=notes, shards=list(ready.data.places))
        return 0

    monkeypatch.setattr("train.cli.fit", note)
    place = "https://me:secret@example.org/shards?token=secret"
    assert fit(settings(**{"data.init_args.shards": place, "data.init_args.cache": "cache"})) == 0
    assert kept["shards"] == [place], "the run itself has it"
    assert kept["config"]["data"]["init_args"]["shards"] == "https://example.org/shards"
    assert "secret" not in str(kept["config"]) + str(kept["notes"]) + "".join(capsys.readouterr())
    (said,) = kept["notes"]
    assert "give them again" in said


def test_the_first_reading_leaves_out_what_the_classes_add():
    names = []
    for complete in (True, False):
        (commands,) = (one for one in build_parser(complete)._actions if one.dest == "command")
        names.append({action.dest for action in commands._name_parser_map["plan"]._actions})
    assert {name for name in names[0] - names[1] if not name.startswith(_SLOW)} == set()
    assert all(any(name.startswith(part) for name in names[0]) for part in _SLOW)


QUICK = [
    ([], "command"),
    (["--help"], ""),
    (["fitt"], "invalid choice: 'fitt'"),
    (["fit", "--config", "/no/such.yaml"], "/no/such.yaml"),
    (["fit", "--config", str(CONFIGS[0]), "--run.max_stepz", "3"], "max_stepz"),
    (["plan", "--config", str(CONFIGS[0]), "--data.init_args.batch_size", "3", "--run.precision", "fp8"], "precision"),
]


@pytest.mark.parametrize(("arguments", "named"), QUICK, ids=lambda words: " ".join(words) if words else "nothing")
def test_what_needs_no_torch_is_told_without_its_import(arguments, named, monkeypatch, capsys):
    def refuse(*_) -> None:
        raise AssertionError("the classes of stages and data were imported")

    monkeypatch.setattr("train.cli._add_classes", refuse)
    if arguments == ["--help"]:
        with pytest.raises(SystemExit):
            main(arguments)
        shown = " ".join(capsys.readouterr().out.split())
        assert all(f"{name} {about}" in shown for name, about in COMMANDS.items())
    else:
        assert main(arguments) == 2
        assert named in capsys.readouterr().err


def test_the_command_line_itself_imports_no_torch():
    code = "import sys, train.cli; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("place", ["https://me:secretword@host/a?token=abc12345", "s3://key:secretword@bucket/a"])
def test_no_message_of_a_constructor_holds_a_secret(settings, fit, place, capsys):
    assert fit(settings(**{"data.init_args.shards": place})) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "secretword" not in line
    assert "abc12345" not in line


def test_a_report_of_no_run_is_refused_before_anything_heavy_is_imported(tmp_path):
    """A process of its own, which an import of torch would fail."""
    program = "import sys; sys.modules['torch'] = None; from train.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere has no metrics.csv; give the run.folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--run.loggers", "[wandb]"],
            "`loggers`=wandb has no package here to work with. Install it (pip install wandb)",
        ),
        (["--run.loggers", "[tensor]"], "tensor"),
        (["--run.profiler", "fast"], "`profiler`='fast' of RunSettings() must be"),
        (
            ["--run.callbacks", "[{class_path: no.such.Callback}]"],
            "`run.callbacks`=no.such.Callback: No module named 'no'",
        ),
        (["--run.callbacks", "[{class_path: torch.nn.Linear}]"], "torch.nn.Linear"),
        (
            ["--run.callbacks", "[{class_path: lightning.pytorch.callbacks.Timer, init_args: {durations: 1}}]"],
            "durations",
        ),
    ],
)
def test_loggers_profilers_and_callbacks_that_do_not_exist_are_refused_in_one_line(
    arguments, said, capsys, monkeypatch
):
    find = train.settings.find_spec
    monkeypatch.setattr(train.settings, "find_spec", lambda name: None if name == "wandb" else find(name))
    path = next(path for path in CONFIGS if path.name == "sd15.yaml")
    assert main(["fit", "--config", str(path), "--run.accelerator", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_callbacks_by_class_path_become_objects_and_can_be_written_down_again(tmp_path):
    given = "[{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: 00:01:00:00}}]"
    parser = build_parser()
    config = parser.parse_args(["fit", "--config", str(CONFIGS[0]), "--run.callbacks", given])
    written = yaml.safe_load(parser.dump(config))["fit"]["run"]["callbacks"]
    assert written == [
        {
            "class_path": "lightning.pytorch.callbacks.Timer",
            "init_args": {"duration": "00:01:00:00", "interval": "step", "verbose": True},
        }
    ]
    del config.fit["stage"], config.fit["data"]
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    run = instantiate(config)["fit"].run
    assert [type(callback).__name__ for callback in run.callbacks] == ["Timer"]
    assert isinstance(run, RunSettings)

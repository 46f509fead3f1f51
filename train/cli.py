"""`python -m train fit --config configs/….yaml [--dotted.overrides …]`; `plan`, a dry run; `report RUN`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from train.class_paths import YAML_MODE, accept_old_class_paths
from train.error_text import error_sentence
from train.estimate.hardware import Hardware
from train.run.cpu_attention import runs_on_cpu
from train.settings import EmaSettings, GuardSettings, OptimizerSettings, RunSettings

FINISHED, FAILED, BAD_INPUT = 0, 1, 2


def build_parser() -> ArgumentParser:
    """Parser of `fit`: one config file, and every value in it as an option.

    Nothing is ever taken from a checkpoint: LightningCLI would merge the saved settings over the command line.
    """
    from train.sources.stage_data import StageData
    from train.stages.stage import Stage

    accept_old_class_paths()
    about_all = "Train a stage; see configs/."
    parser = ArgumentParser(prog="python -m train", exit_on_error=False, description=about_all, parser_mode=YAML_MODE)
    commands = parser.add_subcommands(dest="command")
    about = {
        "fit": "Train, or continue a training. With --plan: only say what would happen, like the command `plan`.",
        "plan": "Say what `fit` with the same arguments will do, cost and write; needs no GPU and reads no weights.",
    }
    for name, description in about.items():
        command = ArgumentParser(exit_on_error=False, description=description, parser_mode=YAML_MODE)
        command.add_argument("--config", action="config", help="YAML with everything below.")
        help_resume = "Continue from the newest complete checkpoint in run.folder."
        command.add_argument("--resume", action=ActionYesNo, default=True, help=help_resume)
        command.add_class_arguments(RunSettings, "run")
        command.add_subclass_arguments(Stage, "stage", required=True)
        command.add_subclass_arguments(StageData, "data", required=True)
        if name == "plan":
            command.add_class_arguments(Hardware, "hardware")
            help_gpus = "Numbers of GPUs to compare in a table, such as 1,16,128,1024; with the same samples a step."
            command.add_argument("--gpus", type=str, default="", help=help_gpus)
        commands.add_subcommand(name, command)
    report = ArgumentParser(
        exit_on_error=False, description="One page of HTML that shows a run, also while it goes on."
    )
    report.add_argument("folder", type=str, help="The run's folder.")
    report.add_argument("--out", type=str | None, default=None, help="The file; report.html in the folder by default.")
    commands.add_subcommand("report", report)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when finished (or out of time), 1 when training had to stop, 2 on bad input, 130 after Ctrl-C, 143 when told
        to stop by SIGTERM.
    """
    from train.run.termination import ToldToStop, leaving_on_signals

    parser = build_parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["fit"] and "--plan" in arguments:  # no setting of a run, so it stays out of its config.yaml
        arguments = ["plan", *(argument for argument in arguments[1:] if argument != "--plan")]
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        return _print_error(error, BAD_INPUT)
    if config.command != "fit":
        return {"plan": show_plan, "report": report}[config.command](config[config.command])
    try:
        with leaving_on_signals():
            return prepare_and_fit(parser, config)
    except ToldToStop as told:
        return _print_error(told, told.exit_code)


def prepare_and_fit(parser: ArgumentParser, config: Namespace) -> int:
    """Make stage and data, train, and say as one line what kept a run from it.

    Args:
        parser: What `config` came from.
        config: Values of the command `fit`.

    Returns:
        An exit code, as `main`.
    """
    from data.shards.https.addresses import without_secrets
    from data.shards.reading.skips import NoReadableSample, TooManySkipped
    from seecoder.weights.safetensors_files import WeightsError
    from train.run.guards import TrainingStopped
    from train.run.launched import check_launcher

    try:
        run, notes = read_run(config.fit)  # before anything is loaded
        run.check_installed()
        check_launcher(run)
        choose_checkpointing(config.fit)
        # Renamed in jsonargparse 4.49; the older name warns in newer ones.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        ready = instantiate(config)["fit"]
        ready.run.micro_batches(ready.data.batch_size)
    except (ArgumentError, ValueError, TypeError, OSError, WeightsError) as error:
        return _print_error(error, BAD_INPUT)
    try:
        given = yaml.safe_load(parser.dump(config))["fit"]
        kept = without_secrets(given)
        if kept != given:
            notes.append("logins and queries of addresses are not kept in config.yaml; give them again to go on")
        return fit(ready, kept, notes)
    except CannotBegin as error:
        return _print_error(error, BAD_INPUT)
    except (TrainingStopped, TooManySkipped, NoReadableSample) as error:
        return _print_error(error, FAILED)


def read_run(config: Namespace) -> tuple[RunSettings, list[str]]:
    """Settings of the run, and what is odd about them.

    Raises:
        ValueError: They, or those of the stage's parts that need no weights, are impossible.
    """
    run, options = RunSettings(**config.run.as_dict()), config.stage.init_args
    for name, settings in (("ema", EmaSettings), ("guard", GuardSettings)):
        if options.get(name) is not None:
            settings(**options[name].as_dict())
    adversary = options.get("adversarial")
    starts = adversary.start_step if adversary is not None and adversary.weight > 0 else None
    return run, list(run.unreached_steps(OptimizerSettings(**options.optimizer.as_dict()), starts))


def choose_checkpointing(config: Namespace) -> None:
    """Where the stage says "auto", choose by this machine's memory what recomputes its activations.

    Raises:
        ValueError: Nothing is known about the base that memory could be estimated from.
    """
    options = config.stage.init_args
    if options.get("gradient_checkpointing") != "auto":
        return
    from seecoder.base_model.known_bases import base_sizes
    from train.estimate.memory import count_run
    from train.sources.planned_data import open_if_there

    sizes = base_sizes(options.base)
    if sizes is None:
        raise ValueError(
            f"`gradient_checkpointing`=auto: {options.base} is in no built-in table; give a local folder, or name the "
            "parts that recompute ([], [encoder], [encoder, unet])."
        )
    run, source = RunSettings(**config.run.as_dict()), config.data.init_args.as_dict()
    counted = count_run(run, options.as_dict(), source, sizes, open_if_there(source), Hardware.of_this_machine(run))
    options.gradient_checkpointing = counted.options["gradient_checkpointing"]
    parts = " and ".join(options.gradient_checkpointing) or "nothing"
    print(f"by the memory of this machine, {parts} will recompute activations in the backward pass", flush=True)


def show_plan(config: Namespace) -> int:
    """Print what a run would do, line by line; exit code 2 if it cannot work."""
    from seecoder.weights.safetensors_files import WeightsError
    from train.estimate.run_plan import make_plan

    try:
        run, notes = read_run(config)
        stage, data, hardware = config.stage.as_dict(), config.data.as_dict(), Hardware(**config.hardware.as_dict())
        gpus = [int(word) if word.isdecimal() else word for word in config.gpus.split(",") if config.gpus]
        for line in make_plan(run, stage, data, hardware, gpus):
            print(line, flush=True)
        for note in notes:
            print(f"note     {note}", flush=True)
    except (ValueError, TypeError, OSError, WeightsError) as error:
        return _print_error(error, BAD_INPUT)
    return FINISHED


def report(config: Namespace) -> int:
    """Write the page of a run."""
    from train.report.run_report import write_report

    try:
        print(write_report(Path(config.folder), Path(config.out) if config.out else None))
    except OSError as error:
        return _print_error(error, BAD_INPUT)
    return FINISHED


def _print_error(error: BaseException, code: int) -> int:
    """Print an error as one line, also the parser's, which have many; give the exit code back."""
    print("python -m train:", error_sentence(error), file=sys.stderr)
    return code


def fit(ready: Namespace, config: Mapping[str, Any], notes: Sequence[str] = ()) -> int:
    """Train what the configuration describes.

    Args:
        ready: `run`, `stage`, `data` and `resume`.
        config: The same as plain values, for the run's folder.
        notes: What is odd about them, to be said at the start.

    Raises:
        CannotBegin: The folder holds checkpoints that are not to be continued, or something that was asked for cannot
            be had.
    """
    from train.run.checkpoints import checkpoint_to_continue
    from train.run.cpu_attention import float32_attention
    from train.run.launched import only_run_in
    from train.run.provenance import Provenance
    from train.run.termination import exit_code
    from train.run.trainer import build_trainer

    run: RunSettings = ready.run
    folder = Path(run.folder)
    provenance = Provenance(folder, config)
    ready.data.may_begin_epoch = run.changed_order == "new_epoch"
    with _beginning(provenance), only_run_in(folder), float32_attention() if runs_on_cpu(run) else nullcontext():
        checkpoint = checkpoint_to_continue(folder, ready.resume)
        if checkpoint is not None and int(checkpoint.stem.removeprefix("step-")) >= run.max_steps:
            print(
                f"{folder} is finished: {checkpoint.name} has `max_steps`={run.max_steps}; raise it to extend the run."
            )
            return FINISHED
        path: Any = str(checkpoint) if checkpoint else None
        trainer, termination = build_trainer(run, ready.data.batch_size, provenance)
        if trainer.is_global_zero:
            print(f"continues from {checkpoint}" if checkpoint else f"starts in {folder}", flush=True)
            for note in notes:
                print(f"note: {note}", flush=True)
        trainer.fit(ready.stage, datamodule=ready.data, ckpt_path=path, weights_only=True)
    if trainer.is_global_zero and trainer.global_step < run.max_steps:
        print(f"stopped at step {trainer.global_step} of {run.max_steps}; the same command continues", flush=True)
    return exit_code(termination.stopped_by_signal) if termination.stopped_by_signal else FINISHED


class CannotBegin(Exception):
    """A run that ended before its first batch, because of what it was told or of what is not there."""


@contextmanager
def _beginning(provenance: Any) -> Iterator[None]:
    """Tell bad settings, which show before the first batch, from what goes wrong in training."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from seecoder.weights.safetensors_files import WeightsError
    from train.run.provenance import changed_settings

    # Of the system's errors those that say what is there and what is not; a disk that fails may not fail the next time.
    settled = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
    try:
        yield
    except (ValueError, ImportError, WeightsError, MisconfigurationException, *settled) as error:
        if provenance.has_begun:
            raise
        changes = changed_settings(provenance.folder, provenance.config) if isinstance(error, WeightsError) else []
        changes = [change for change in changes if change.startswith("stage.")]
        hint = f" Changed since the run began: {'; '.join(changes)}. Change it back." if changes else ""
        raise CannotBegin(error_sentence(error) + hint) from error

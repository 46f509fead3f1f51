"""`python -m train fit --config configs/….yaml [--dotted.overrides …]`; `plan`, a dry run; `report RUN`."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from data.shards.remote.addresses import redacted
from train.class_paths import accept_old_class_paths
from train.error_text import error_sentence
from train.run.launched import check_launcher
from train.settings import EmaSettings, GuardSettings, OptimizerSettings, RunSettings

FINISHED, FAILED, BAD_INPUT = 0, 1, 2


COMMANDS = {
    "fit": "Train, or continue a training. With --plan: only say what would happen, like the command `plan`.",
    "plan": "Say what `fit` with the same arguments will do, cost and write; needs no GPU and reads no weights.",
    "report": "One page of HTML that shows a run, also while it goes on.",
}
_SLOW = ("stage", "data", "hardware", "run.callbacks")  # from `_add_classes`; left out of a first, quick reading


def build_parser(complete: bool = True) -> ArgumentParser:
    """Parser of `fit`: one config file, and every value in it as an option.

    Nothing is ever taken from a checkpoint: LightningCLI would merge the saved settings over the command line.

    Args:
        complete: With stage, data and hardware; without, it is made at once and takes anything for them.
    """
    accept_old_class_paths()
    about = "Train an encoder, autoencoder, UNet, backbone; see configs/. `python -m train fit --help` lists settings."
    parser = ArgumentParser(prog="python -m train", exit_on_error=False, description=about)
    commands = parser.add_subcommands(dest="command")
    for name, description in COMMANDS.items():
        command = ArgumentParser(exit_on_error=False, description=description)
        commands.add_subcommand(name, command, help=description)
        if name == "report":
            command.add_argument("folder", type=str, help="The run's folder.")
            command.add_argument(
                "--out", type=str | None, default=None, help="The file; FOLDER/report.html by default."
            )
            continue
        command.add_argument("--config", action="config", help="YAML with everything below.")
        help_resume = "Continue from the newest complete checkpoint in run.folder."
        command.add_argument("--resume", action=ActionYesNo, default=True, help=help_resume)
        command.add_class_arguments(RunSettings, "run", skip={"callbacks"})
        if complete:
            _add_classes(command, name)
        else:
            for part in _SLOW:
                command.add_argument(f"--{part}", type=dict | list)
        if name == "plan":
            help_gpus = "Numbers of GPUs to compare in a table, such as 1,16,128,1024; with the same samples a step."
            command.add_argument("--gpus", type=str, default="", help=help_gpus)
    return parser


def _add_classes(command: ArgumentParser, name: str) -> None:
    from lightning.pytorch import Callback

    from train.estimate.hardware import Hardware
    from train.sources.stage_data import StageData
    from train.stages.stage import Stage

    yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))  # enums
    command.add_argument("--run.callbacks", type=list[Callback], default=[], help="Lightning callbacks of your own.")
    command.add_subclass_arguments(Stage, "stage", required=True)
    command.add_subclass_arguments(StageData, "data", required=True)
    if name == "plan":
        command.add_class_arguments(Hardware, "hardware")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what needs no torch to be refused is refused before it is imported.

    Returns:
        0 when finished (or out of time), 1 when training had to stop, 2 on bad input, 130 after Ctrl-C, 143 when told
        to stop by SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["fit"] and "--plan" in arguments:  # no setting of a run, so it stays out of its config.yaml
        arguments = ["plan", *(argument for argument in arguments[1:] if argument != "--plan")]
    try:
        if not any(argument.startswith(("-h", "--help", "--print_config")) for argument in arguments[1:]):
            quick = build_parser(complete=False).parse_args(_without_classes(arguments))
            if quick.command == "report":
                return report(quick.report)
            run = RunSettings(**quick[quick.command].run.as_dict())
            if quick.command == "fit":
                check_launcher(run)
                run.check_installed()
        parser = build_parser()
        config = parser.parse_args(arguments)
    except (ArgumentError, ValueError, OSError, RecursionError) as error:
        return _print_error(error, BAD_INPUT)
    if config.command == "plan":
        return show_plan(config.plan)
    from train.run.termination import ToldToStop, leaving_on_signals

    try:
        with leaving_on_signals():
            return prepare_and_fit(parser, config)
    except ToldToStop as told:
        return _print_error(told, told.exit_code)


def _without_classes(arguments: Sequence[str]) -> list[str]:
    """Arguments but those of stage, data and hardware."""
    kept, is_slow = [], False
    for argument in arguments:
        if argument.startswith("--"):
            is_slow = argument.startswith(tuple(f"--{part}" for part in _SLOW))
        kept += [] if is_slow else [argument]
    return kept


def prepare_and_fit(parser: ArgumentParser, config: Namespace) -> int:
    """Make stage and data, train, and say as one line what kept a run from it.

    Args:
        parser: What `config` came from.
        config: Values of the command `fit`.

    Returns:
        An exit code, as `main`.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from data.shards.reading.skips import NoReadableSample, TooManySkipped
    from seecoder.weights.safetensors_files import WeightsError
    from train.run.cpu_attention import is_slow_in_bfloat16
    from train.run.guards import TrainingStopped
    from train.run.provenance import Provenance

    provenance = None
    # Of the system's errors those that say what is there and what is not; a disk that fails may not fail the next time.
    settled = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
    settled += (ValueError, ImportError, WeightsError, MisconfigurationException)
    try:
        run, notes = read_run(config.fit)  # before anything is loaded
        choose_checkpointing(config.fit)
        # Renamed in jsonargparse 4.49; the older name warns in newer ones.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        ready = instantiate(config)["fit"]
        ready.run.micro_batches(ready.data.batch_size)
        given = parser.dump(config)
        if (kept := redacted(given)) != given:
            notes.append("logins and queries of addresses are not kept in config.yaml; give them again to go on")
        provenance = Provenance(Path(run.folder), yaml.safe_load(kept)["fit"])
        if is_slow_in_bfloat16(run):
            notes.append(
                f"this CPU has no instructions for bfloat16: `run.precision`={run.precision} takes about ten times as "
                "long as --run.precision 32-true"
            )
        return fit(ready, provenance, notes)
    except (TrainingStopped, TooManySkipped, NoReadableSample) as error:
        return _print_error(error, FAILED)
    except (ArgumentError, TypeError, OSError, *settled) as error:
        if provenance is not None and (provenance.has_begun or not isinstance(error, settled)):
            raise
        hint = provenance.hint() if provenance is not None and isinstance(error, WeightsError) else ""
        return _print_error(error, BAD_INPUT, hint)


def read_run(config: Namespace) -> tuple[RunSettings, list[str]]:
    """Settings of the run, and what is odd about them.

    Raises:
        ValueError: They, or those of the stage's parts that need no weights, are impossible.
    """
    from train.frozen.held_weights import check_holding

    run, options = RunSettings(**config.run.as_dict()), config.stage.init_args
    for name, settings in (("ema", EmaSettings), ("guard", GuardSettings)):
        if options.get(name) is not None:
            settings(**options[name].as_dict())
    check_holding(options, run.accelerator)
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
    from train.estimate.hardware import Hardware, count_run
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
    from train.estimate.hardware import Hardware
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
    """Write the page of a run; a folder that is none's is refused before imports that take seconds."""
    folder = Path(config.folder)
    if not (folder / "metrics.csv").is_file():
        raise FileNotFoundError(f"{folder} has no metrics.csv; give the run.folder of a training that has begun.")
    from train.report.run_report import write_report

    print(write_report(folder, Path(config.out) if config.out else None))
    return FINISHED


def _print_error(error: BaseException, code: int, hint: str = "") -> int:
    """Print an error as one line, also the parser's, which have many; give the exit code back."""
    print(f"python -m train: {error_sentence(error)}{hint}", file=sys.stderr)
    return code


def fit(ready: Namespace, provenance: Any, notes: Sequence[str] = ()) -> int:
    """Train what the configuration describes.

    Args:
        ready: `run`, `stage`, `data` and `resume`.
        provenance: Keeps the configuration as plain values in the run's folder.
        notes: What is odd about them, to be said at the start.

    Raises:
        FileExistsError: The folder holds checkpoints that are not to be continued, or another process trains there.
    """
    from train.run.checkpoints import AtomicCheckpointIO, checkpoint_to_continue
    from train.run.cpu_attention import float32_attention, runs_on_cpu
    from train.run.launched import only_run_in
    from train.run.termination import exit_code
    from train.run.trainer import build_trainer

    run: RunSettings = ready.run
    folder = Path(run.folder)
    ready.data.may_begin_epoch = run.changed_order == "new_epoch"
    with only_run_in(folder), float32_attention() if runs_on_cpu(run) else nullcontext():
        checkpoint = checkpoint_to_continue(folder, ready.resume)
        start_step = int(checkpoint.stem.removeprefix("step-")) if checkpoint is not None else 0
        if checkpoint is not None and start_step >= run.max_steps:
            AtomicCheckpointIO().load_checkpoint(checkpoint)  # is it what its name says?
            print(f"{folder} is finished: {checkpoint.name} has `max_steps`={run.max_steps}; raise it to go on.")
            return FINISHED
        trainer, termination = build_trainer(run, ready.data.batch_size, provenance, start_step)
        if trainer.is_global_zero:
            print(f"continues from {checkpoint}" if checkpoint else f"starts in {folder}", flush=True)
            for note in notes:
                print(f"note: {note}", flush=True)
        trainer.fit(ready.stage, datamodule=ready.data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and trainer.global_step < run.max_steps:
        print(f"stopped at step {trainer.global_step} of {run.max_steps}; the same command continues", flush=True)
    return exit_code(termination.stopped_by_signal) if termination.stopped_by_signal else FINISHED

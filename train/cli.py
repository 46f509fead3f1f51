"""`python -m train fit --config configs/….yaml [--dotted.overrides …]`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from train.settings import RunSettings

BAD_INPUT, TERMINATED = (
    2,
    143,
)  # 143 = 128 + SIGTERM: a scheduler sees that the run was told to stop, not that it finished


def build_parser() -> ArgumentParser:
    """Parser of `fit`: one config file, and every value in it as an option."""
    from train.stage import Stage
    from train.stage_data import StageData

    parser = ArgumentParser(prog="python -m train", exit_on_error=False, description="Train a stage; see configs/.")
    commands = parser.add_subcommands(dest="command")
    fit = ArgumentParser(exit_on_error=False, description="Train, or continue a training.")
    fit.add_argument("--config", action="config", help="YAML with everything below.")
    fit.add_argument(
        "--resume", action=ActionYesNo, default=True, help="Continue from the newest complete checkpoint in run.folder."
    )
    fit.add_class_arguments(RunSettings, "run")
    fit.add_subclass_arguments(Stage, "stage", required=True)
    fit.add_subclass_arguments(StageData, "data", required=True)
    commands.add_subcommand("fit", fit)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when finished (or out of time), 2 on bad input, 143 when told to stop by SIGTERM.
    """
    parser = build_parser()
    try:
        config = parser.parse_args(arguments)
        if config.command is None:
            parser.print_help()
            return BAD_INPUT
        ready = parser.instantiate_classes(config)
    except (ArgumentError, ValueError, TypeError, FileNotFoundError) as error:
        print(f"python -m train: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    return fit(ready.fit, parser.dump(config))


def one_line(error: BaseException) -> str:
    """The parser's many lines as one."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return re.sub(r"\s+", " ", text).strip()


def fit(ready: Namespace, effective_config: str) -> int:
    """Train what the configuration describes."""
    from train.checkpoints import newest_complete
    from train.trainer import build_trainer

    run: RunSettings = ready.run
    folder = Path(run.folder)
    checkpoint = newest_complete(folder) if ready.resume else None
    if checkpoint is None and any(folder.glob("step-*.ckpt")):
        hint = "remove it or choose another run.folder" if not ready.resume else "none of them is whole"
        print(f"python -m train: `run.folder`={folder} holds checkpoints of an earlier run: {hint}.", file=sys.stderr)
        return BAD_INPUT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(effective_config)
    trainer, termination = build_trainer(run, ready.data.batch_size)
    print(f"{'continues from ' + str(checkpoint) if checkpoint else 'starts'}: {folder}", flush=True)
    path: Any = str(checkpoint) if checkpoint else None
    trainer.fit(ready.stage, datamodule=ready.data, ckpt_path=path)
    return TERMINATED if termination.stopped_by_signal else 0

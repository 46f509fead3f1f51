"""What the commands of `data` have in common: help as it is written, errors in one line, exit codes, builds."""

import sys
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, set_loader
from tqdm import tqdm
from yaml import YAMLError

from data.hidden_secrets import hide_secrets, learn_secrets, scrubbed
from data.shards.buckets import describe_enlarged
from data.shards.building.claim import claimed_folder
from data.shards.building.shard_build import REPORT, Build, run_build
from data.shards.manifest import Manifest
from data.shards.picture_sizes import all_sizes
from data.unique_keys import load_unique


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults of options that have one, and leaves the lines of the description as they are."""

    def _get_help_string(self, action: Action) -> str:
        # jsonargparse would add Python's names of types, which say little to who types a command.
        has_default = isinstance(action.default, int | float | str) and action.default not in (False, SUPPRESS)
        return f"{action.help} (default: {action.default})" if has_default else str(action.help)


def make_parser(program: str | None = None, description: str | None = None) -> ArgumentParser:
    """Make a parser that raises in place of leaving the program.

    Args:
        program: How the command is called, such as "python -m data.build"; None for the parser of a subcommand.
        description: Text above the options, shown line by line.
    """
    set_loader("yaml", load_unique, exceptions=(YAMLError,))
    parser = ArgumentParser(prog=program, description=description, formatter_class=_HelpFormatter, exit_on_error=False)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def run_command(parser: ArgumentParser, action: Callable[[Namespace], None], arguments: Sequence[str] | None) -> int:
    """Parse the arguments of a command and run it.

    Args:
        parser: From `make_parser`.
        action: Does the work. It gets the options; those of a subcommand without the rest, and with its name under
            `command`.
        arguments: The command line without the program; `sys.argv` when not given.

    Returns:
        Exit code: 0; 2 for bad input, with one line on stderr; 130 when interrupted.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        hide_secrets()
    learn_secrets("\n".join(arguments))
    try:
        options = parser.parse_args(arguments)
        command = options.get("command")
        action(options if command is None else Namespace(**vars(options[command]), command=command))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (ArgumentError, ValueError, TypeError, OSError, RuntimeError) as error:
        if "--debug" in arguments:
            raise
        print(f"error: {scrubbed(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


def build_aloud(build: Build, workers: int = 0, bad_ones: str = "pictures left out", *, wait: bool = False) -> None:
    """Build, or finish what was begun, with a bar, and print what came of it.

    Args:
        build: What shall be built.
        workers: Processes; 0 and 1 work in this one.
        bad_ones: What bad sources are and what happens to them.
        wait: Wait for another process that is building there, in place of an error.
    """
    with (
        claimed_folder(build, wait=wait),
        tqdm(total=len(build.source), unit="sample", mininterval=1 if sys.stderr.isatty() else 30) as bar,
    ):
        manifest, progress = run_build(build, min(workers, len(build.ranges())), bar.update)
    kept = f", {progress.kept:,} of them from an earlier run" if progress.kept else ""
    print(f"done: {manifest_totals(manifest)}{kept}")
    size = build.settings.get("size")  # of pictures or scenes; a copy has none
    if isinstance(size, int) and (larger := describe_enlarged(all_sizes(manifest.shards), size)):
        print(f"{larger} by a training at {size} pixels")
    if progress.bad:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in progress.bad.most_common())
        print(f"{progress.bad.total():,} bad {bad_ones} ({reasons}); they are named in {build.folder / REPORT}")


def manifest_totals(manifest: Manifest) -> str:
    """Samples, shards and megabytes."""
    size = sum(shard.bytes or 0 for shard in manifest.shards)
    return f"{manifest.samples:,} samples in {len(manifest.shards):,} shards, {size / 1e6:,.1f} MB"

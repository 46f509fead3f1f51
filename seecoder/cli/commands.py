"""All commands of `seecoder`, and how one of them is run.

Every command is a module with `HELP`, `add_arguments(parser)` and `run(arguments)`. What these modules import at the
top is light, so that `seecoder --help` answers at once; torch and diffusers are imported when a command runs. Errors
that a user can do something about end with one line and exit code 2; `--debug` shows where they came from.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from seecoder import __version__
from seecoder.cli import app, encode, eval_, export, import_, info, panorama, vary
from seecoder.cli.console import say
from seecoder.cli.options import LIST, with_flags
from seecoder.cli.varying.method_list import describe_methods
from seecoder.lookup import check_source
from seecoder.threads import wait_passively

# Options that are looked up before anything heavy is imported.
_SOURCES = ("base", "encoder", "vae", "controlnet", "adapter", "lora")
_HOME = re.compile(r"^(|--[\w-]+=)~(?=[/\\]|$)")
_COMMANDS = (vary, panorama, encode, eval_, export, import_, info, app)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(
        prog="seecoder", description="Pictures from pictures, at any resolution, with any Stable Diffusion base."
    )
    parser.add_argument("--version", action="version", version=f"seecoder {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2].rstrip("_")  # a module cannot be called `import`
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=_Formatter)
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show where an error came from")
        command.set_defaults(run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of a command with thirty options would hide it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Refuse what is left over here, where it is known which command it was meant for.

        A `~` that no shell replaced, as behind `=` or in quotes, is the home folder here, too.
        """
        home, given = os.path.expanduser("~"), sys.argv[1:] if args is None else args
        given = [_HOME.sub(lambda found: found[1] + home, text) for text in given]
        namespace, rest = super().parse_known_args(given, namespace)
        if rest:
            known = [flag for action in self._actions for flag in action.option_strings]
            flag = rest[0].partition("=")[0].replace("prompt", "text")  # as other programs call it
            near = get_close_matches(flag, known, 1) if rest[0].startswith("-") else []
            self.error(f"`{rest[0]}` is not understood{f'; did you mean `{near[0]}`?' if near else ''}")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} See {self.prog} --help.\n")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the module's text as it is written, and shows defaults that are not None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
            return action.help
        return super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        0, or 2 after an error that the user can do something about, or 130 after an interruption.
    """
    wait_passively()
    arguments = build_parser().parse_args(argv)
    try:
        if getattr(arguments, "method", None) == LIST:
            print(describe_methods(arguments))
        else:
            if getattr(arguments, "out", None) == "":
                raise ValueError("`out`='' must name a place. Use `.` for the current folder.")
            for name in _SOURCES:
                given = getattr(arguments, name, None)
                for source in given if isinstance(given, list) else filter(None, [given]):
                    check_source(f"--{name}", source[0] if isinstance(source, tuple) else source)
            arguments.run(arguments)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("interrupted; what was finished stays")
        return 130
    # RuntimeError: WeightsError, memory, NaN. ImportError: an extra that is not installed.
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if arguments.debug:
            raise
        text = with_flags(" ".join(str(error).split())) or type(error).__name__
        print(f"seecoder {arguments.command}: {text}", file=sys.stderr)
        return 2
    return 0

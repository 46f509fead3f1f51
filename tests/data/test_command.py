"""What the commands of `data` share: one line and exit code 2, help as it is written."""

from collections.abc import Callable
from typing import Any

import pytest
from jsonargparse import Namespace

from data.command import make_parser, run_command


def run(action: Callable[[Namespace], None], *arguments: str) -> int:
    parser = make_parser("program", "First line.\n\n    program --number 3   # an example")
    parser.add_argument("--number", type=int, default=7, help="A number.")
    parser.add_argument("--word", help="A word.")
    return run_command(parser, action, arguments)


def raising(error: BaseException) -> Callable[[Any], None]:
    def action(_: Namespace) -> None:
        raise error

    return action


def test_options_reach_the_action():
    seen: list[Namespace] = []
    assert run(seen.append, "--number", "3") == 0
    assert (seen[0].number, seen[0].word) == (3, None)


def test_options_of_a_subcommand_come_with_its_name():
    parser, inner = make_parser("program"), make_parser()
    inner.add_argument("--number", type=int, default=7, help="A number.")
    parser.add_subcommands(dest="command").add_subcommand("count", inner, help="Counts.")
    seen: list[Namespace] = []
    assert run_command(parser, seen.append, ["count", "--number", "4"]) == 0
    assert (seen[0].command, seen[0].number) == ("count", 4)


@pytest.mark.parametrize("error", [ValueError("a\nb"), OSError("a b"), TypeError("a b"), RuntimeError("a  b")])
def test_errors_are_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]):
    assert run(raising(error)) == 2
    assert capsys.readouterr().err == "error: a b\n"


def test_bad_options_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--number", "x"], ["--unknown", "1"], ["extra"]):
        assert run(lambda _: None, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="why"):
        run(raising(ValueError("why")), "--debug")


def test_an_interrupted_command_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    assert run(raising(KeyboardInterrupt())) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_help_keeps_the_lines_of_the_description_and_shows_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        run(lambda _: None, "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "\n    program --number 3   # an example\n" in text
    assert "A number. (default: 7)" in text
    assert "A word.\n" in text
    assert "type:" not in text

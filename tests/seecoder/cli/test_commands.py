"""The command as a whole: quick help, one line and exit code 2 on errors."""

import subprocess
import sys
import time

import pytest

from seecoder.cli import build_parser, main

VARY = ["vary", "a.png", "--base", "base", "--encoder", "encoder", "--out", "out"]
COMMANDS = ["vary", "panorama", "encode", "eval", "export", "import", "info", "app"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0
    shown = capsys.readouterr().out
    assert "--debug" in shown
    assert len(shown) > 400


def test_help_is_light():
    """What `seecoder --help` imports decides how long it takes; the clock of a busy machine would not."""
    code = (
        "import sys; from seecoder.cli import build_parser; build_parser().format_help(); "
        "heavy = {'torch', 'diffusers', 'timm', 'transformers', 'numpy', 'PIL', 'gradio'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.process_time() - start < 3


def test_module_and_command_are_one():
    done = subprocess.run([sys.executable, "-m", "seecoder", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("seecoder ")


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nothing")]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("seecoder info: ")
    assert "\n" not in shown
    with pytest.raises(FileNotFoundError):
        main(["info", str(tmp_path / "nothing"), "--debug"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vary"], "seecoder vary: the following arguments are required: --base, --encoder, --out."),
        (["vary", "a.png", "--steps", "many"], "seecoder vary: argument --steps: invalid int value: 'many'."),
        (["vary", "a.png", "--eta", "x"], "seecoder vary: argument --eta: invalid float value: 'x'."),
        ([*VARY, "--prompt", "a cat"], "seecoder vary: `--prompt` is not understood; did you mean `--text`?"),
        (
            [*VARY, "--negative-prompt=x"],
            "seecoder vary: `--negative-prompt=x` is not understood; did you mean `--negative-text`?",
        ),
        (["nonsense"], "seecoder: argument COMMAND: invalid choice: 'nonsense'"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(arguments)
    assert error.value.code == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert shown.endswith("--help.")
    assert "\n" not in shown


def test_interruption_is_not_an_error_of_the_program(monkeypatch, capsys):
    from seecoder.cli import info

    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "describe", interrupt)
    assert main(["info", "."]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["vary", "a.png", "--base", "b", "--encoder", "c", "--out", ""],
        ["panorama", "a.png", "--base", "b", "--encoder", "c", "--out", ""],
        ["encode", "a.png", "--encoder", "c", "--out", ""],
        ["export", "a", ""],
        ["import", "a", ""],
    ],
)
def test_no_place_to_write_to_is_refused_before_anything_is_looked_for(command, capsys):
    assert main(command) == 2
    assert "='' must name a place" in capsys.readouterr().err


def test_a_tilde_that_no_shell_replaced_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")  # of Windows
    given = ["vary", "~/a cat.png", "a~b.png", "./~/c.png", "--out=~/out", "--base", "~", "--encoder", "~other/encoder"]
    parsed = build_parser().parse_args([*given, "--sheet=s~.png"])
    assert parsed.pictures == ["/home/me/a cat.png", "a~b.png", "./~/c.png"]
    assert (parsed.out, parsed.base, parsed.encoder) == ("/home/me/out", "/home/me", "~other/encoder")
    assert parsed.sheet == "s~.png"

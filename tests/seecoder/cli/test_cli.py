"""The command as a whole: quick help, one line and exit code 2 on errors."""

import subprocess
import sys
import time

import pytest

from seecoder.cli import build_parser, main
from seecoder.cli.console import check_new, safe_name

COMMANDS = ["vary", "panorama", "encode", "export", "import", "info", "app"]


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
        (["vary", "a.png", "--steps", "0"], "seecoder vary: argument --steps: 0 is not at least 1."),
        (["vary", "a.png", "--steps", "many"], "seecoder vary: argument --steps: 'many' is not a whole number."),
        (["vary", "a.png", "--eta", "x"], "seecoder vary: argument --eta: 'x' is not a number."),
        (["vary", "a.png", "--autoencoder-memory", "0"], "argument --autoencoder-memory: 0 is not above 0."),
        (["vary", "a.png", "--autoencoder-memory", "nan"], "argument --autoencoder-memory: nan is not above 0."),
        (["vary", "a.png", "--seed", "-1"], "argument --seed: -1 is not a seed; use 0 to 2^63 - 1."),
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


def test_the_default_of_the_autoencoder_s_memory_is_the_pipeline_s():
    """The option states it anew, because the parser answers without importing torch."""
    from seecoder.pipelines.bounded_memory import AUTOENCODER_MEMORY

    given = ["vary", "a.png", "--base", "b", "--encoder", "e", "--out", "o"]
    assert build_parser().parse_args(given).autoencoder_memory == AUTOENCODER_MEMORY


def test_interruption_is_not_an_error_of_the_program(monkeypatch, capsys):
    from seecoder.cli import info

    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "describe", interrupt)
    assert main(["info", "."]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("猫.png", "png"),
        ("a b\x00c", "a-b-c"),
        ("x" * 99, "x" * 40),
    ],
)
def test_names_become_safe(name, safe):
    assert safe_name(name) == safe


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "a").write_text("x")
    check_new([tmp_path / "b"], overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_new([tmp_path / "a"], overwrite=False)
    check_new([tmp_path / "a"], overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_new([tmp_path / "a" / "b"], overwrite=True)

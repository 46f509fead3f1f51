"""No file that a command writes, and no line that it prints, holds a secret of an address that it was given."""

import io
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import hidden_secrets
from data.build import main as build
from data.cache import main as cache
from data.shards.remote import fetcher
from seecoder.cli import main as seecoder
from train.cli import main as train

SECRETS = ("PASSW0RDWORD", "T0KENWORD", "S1GNATUREWORD", "hf_PLANTED0123456789PLANTED", "K3YWORD")
SERVER = "https://me:PASSW0RDWORD@shards.example/{}?token=T0KENWORD&X-Amz-Signature=S1GNATUREWORD"
STORE = "s3://K3YWORD:PASSW0RDWORD@bucket/{}?hf=hf_PLANTED0123456789PLANTED"


class _Answer(io.BytesIO):
    length = None


@pytest.fixture(autouse=True)
def _served(monkeypatch, shards, held_out_shards) -> None:
    """Both addresses lead to folders here; nothing is known of secrets at first."""

    def open_url(url: str, timeout: float) -> Any:
        kind, name = Path(urllib.parse.urlsplit(url).path).parts[-2:]
        return _Answer(({"train": shards, "held_out": held_out_shards}[kind] / name).read_bytes())

    monkeypatch.setattr(fetcher, "open_url", open_url)
    monkeypatch.setattr(hidden_secrets, "_known", set())


def leaks(folder: Path, said: str) -> dict[str, list[str]]:
    """Secrets that stand in files below a folder, or in what was said, by where."""
    texts = {str(path): path.read_bytes() + str(path).encode() for path in folder.rglob("*") if path.is_file()}
    texts["said"] = said.encode()
    return {where: found for where, text in texts.items() if (found := [s for s in SECRETS if s.encode() in text])}


@pytest.mark.heavy
def test_a_training_its_export_and_its_report_keep_none(settings, fit, tmp_path, base, shards, capfd):
    config = settings(
        **{
            "run.max_steps": 2,
            "run.loggers": ["tensorboard"],
            "data.init_args.shards": [SERVER.format("train")],
            "data.init_args.held_out_shards": STORE.format("held_out"),
            "data.init_args.held_out_world": False,
            "data.init_args.cache": str(tmp_path / "fetched"),
        }
    )
    run, given = tmp_path / "run", tmp_path / "config-in.yaml"
    assert fit(config) == 0
    assert fit(config, "--run.max_steps", "3") == 0
    assert train(["report", str(run)]) == 0
    assert fit(config, "--plan") == 0
    assert seecoder(["export", str(run), str(tmp_path / "encoder"), "--base-model", "owner/name"]) == 0
    assert build(["verify", str(shards)]) == 0
    options = ("--base", str(base), "--size", "32", "--device", "cpu")
    assert cache([str(shards), str(tmp_path / "cached"), *options, "--maps", str(given)]) == 0
    assert any(name.suffix == ".ckpt" for name in run.iterdir())
    assert any(SECRETS[0].encode() in line for line in given.read_bytes().splitlines()), "they were planted"
    given.unlink()
    assert leaks(tmp_path, "".join(capfd.readouterr())) == {}


@pytest.mark.parametrize("place", [SERVER.format("train"), STORE.format("train")])
def test_commands_that_want_folders_refuse_addresses_without_repeating_secrets(tmp_path, monkeypatch, capfd, place):
    monkeypatch.chdir(tmp_path)

    def run(main: Callable[[], int], *arguments: str) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["program", *arguments])
            for stream in ("stdout", "stderr"):
                patch.setattr(sys, stream, getattr(sys, stream))
            code = main()
            sys.stdout.detach(), sys.stderr.detach()  # else what ends here would close the test's own
            return code

    for arguments in (["folder", place, "out"], ["list", place, "out"], ["index", place], ["verify", place]):
        assert run(build, *arguments) == 2
    assert run(build, "world", "out", "--count", "2", "--size", "32") == 0
    assert run(build, "folder", "out", place) == 2
    assert run(cache, place, "cached", "--base", place) == 2
    assert run(cache, "out", "cached", "--base", place) == 2
    said = "".join(capfd.readouterr())
    assert said.count("error: ") == 7
    assert leaks(tmp_path, said) == {}

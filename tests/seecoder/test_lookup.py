"""What is not there is said at once, with the true reason, and what looks like a path is never looked up."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from seecoder.lookup import check_source, is_local


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("owner/name", False),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", False),
        ("sd-1.5", True),
        ("./owner/name", True),
        ("~/name", True),
        ("/owner/name", True),
        ("a/b/c", True),
        ("owner/name.safetensors", True),
        ("owner/model.CKPT", True),
        ("folder/name", True),
        (Path("owner/name"), True),
    ],
)
def test_names_and_paths_are_told_apart(source, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert is_local(source) == local


def test_a_path_that_is_not_there_is_never_looked_up(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_session", None)  # a call of it would fail
    with pytest.raises(FileNotFoundError, match=r"`base`=nothere does not exist; give a folder, a file, or a repo"):
        check_source("base", "nothere")


class Session:
    """What the Hub answers."""

    def __init__(self, answer):
        self.answer = answer

    def head(self, address, headers, timeout):
        assert address.endswith("/api/models/owner/name")
        assert timeout <= 5
        if isinstance(self.answer, Exception):
            raise self.answer
        self.status_code = self.answer
        return self


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (404, "there is none of this name, or it is private"),
        (401, "there is none of this name, or it is private"),
        (OSError("Name or service not known"), r"cannot be reached \(Name or service not known\)"),
        (200, None),
        (503, None),
    ],
)
def test_a_repository_is_looked_up_once(answer, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(answer))
    if reason is None:
        check_source("base", "owner/name", cache_dir=tmp_path)
        return
    with pytest.raises(FileNotFoundError, match=f"`base`=owner/name does not exist .*: .*{reason}"):
        check_source("base", "owner/name", cache_dir=tmp_path)
    (tmp_path / "models--owner--name" / "snapshots").mkdir(parents=True)
    check_source("base", "owner/name", cache_dir=tmp_path)


def test_offline_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_session", None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not in the cache, and HF_HUB_OFFLINE"):
        check_source("base", "owner/name", cache_dir=tmp_path)


def test_a_command_answers_before_anything_heavy_is_imported():
    program = (
        "import sys; from seecoder.cli.commands import main; "
        "code = main(['vary', 'x.png', '--base', 'nothere', '--encoder', 'e', '--out', 'o']); "
        "print(code, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert done.stderr.startswith("seecoder vary: `--base`=nothere does not exist;")

"""What a run's folder says of the code that made it."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.hidden_secrets import learn_secrets
from train.run import provenance
from train.run.provenance import commit, note_start


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Run git in a folder; the project's own checkout and the user's settings have no part in it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]

    def run(folder: Path, *arguments: str) -> str:
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def checkout(git, tmp_path, monkeypatch) -> Path:
    """A checkout with one commit, which stands for the project's."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "The first")
    monkeypatch.setattr(provenance, "_ROOT", folder)
    return folder


def noted(folder: Path) -> dict:
    note_start(folder, 0, 1)
    return json.loads((folder / "run.json").read_text())["starts"][-1]


def test_a_start_notes_the_commit_and_whether_files_differ_from_it(git, checkout, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    start = noted(tmp_path)
    assert (start["commit"], start["changed"]) == (head, False)
    (checkout / "runs.txt").write_text("untracked, such as a run's folder")
    assert noted(tmp_path)["changed"] is False
    (checkout / "code.py").write_text("x = 2\n")
    start = noted(tmp_path)
    assert (start["commit"], start["changed"]) == (head, True)
    git(checkout, "commit", "-q", "-a", "-m", "The second")
    start = noted(tmp_path)
    assert start["commit"] == git(checkout, "rev-parse", "HEAD") != head
    assert start["changed"] is False


@pytest.mark.usefixtures("git")
def test_outside_of_git_a_start_is_noted_without_a_commit(tmp_path, monkeypatch):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    monkeypatch.setattr(provenance, "_ROOT", folder)
    start = noted(tmp_path)
    assert not {"commit", "changed"} & start.keys()
    assert start["versions"]["torch"]


def test_without_git_a_start_is_noted_without_a_commit(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert commit() == {}


def test_a_copy_within_another_projects_checkout_does_not_take_its_commit(checkout, monkeypatch):
    copy = checkout / "vendored"
    copy.mkdir()
    monkeypatch.setattr(provenance, "_ROOT", copy)
    assert commit() == {}


def test_starts_are_added_up_and_a_damaged_note_is_begun_anew(tmp_path):
    (tmp_path / "run.json").write_text("{")
    note_start(tmp_path, 0, 2)
    note_start(tmp_path, 5, 1)
    assert [start["step"] for start in json.loads((tmp_path / "run.json").read_text())["starts"]] == [0, 5]


def test_loggers_get_the_configuration_without_secrets(tmp_path):
    learn_secrets("https://user:S3CR3TWORD@host/shards")
    shards = ["https://user:S3CR3TWORD@host/shards?token=abc", "/data/S3CR3TWORD"]
    config = {
        "run": {"max_steps": 9},
        "stage": {"class_path": "a.Stage"},
        "data": {"class_path": "a.Data", "init_args": {"shards": shards}},
    }
    given: list[dict] = []
    trainer: Any = SimpleNamespace(
        is_global_zero=True, global_step=0, world_size=1, loggers=[SimpleNamespace(log_hyperparams=given.append)]
    )
    stage = SimpleNamespace(data=SimpleNamespace(notes={"pictures": "3 of 8 pictures are enlarged"}))
    provenance.Provenance(tmp_path, config).on_start(trainer, stage)
    assert json.loads((tmp_path / "run.json").read_text())["starts"][-1]["pictures"] == "3 of 8 pictures are enlarged"
    cleaned = ["https://host/shards", "/data/..."]
    assert given == [config | {"data": {"class_path": "a.Data", "init_args": {"shards": cleaned}}}]

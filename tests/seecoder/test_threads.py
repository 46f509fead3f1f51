"""OpenMP's threads sleep while they wait, unless the user chose otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seecoder.threads import wait_passively

ROOT = Path(__file__).parents[2]
# Says, of the moment at which torch is first imported, what OpenMP will read; then ends the program.
WATCH = """
import builtins, os, runpy, sys
original = builtins.__import__
def watched(name, *given, **named):
    if name == "torch" or name.startswith("torch."):
        print("policy", os.environ.get("OMP_WAIT_POLICY"), flush=True)
        os._exit(0)
    return original(name, *given, **named)
builtins.__import__ = watched
kind, name, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
sys.path.insert(0, os.getcwd())
runpy.run_module(name, run_name="__main__") if kind == "-m" else runpy.run_path(name, run_name="__main__")
"""
SCRIPTS = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "scripts").rglob("*.py"))
    if "__main__" in path.read_text() and path.stem not in ("gpu_parts", "run_demo")  # a child of gpu.py; without torch
]


@pytest.fixture
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)


def test_threads_wait_asleep(environment):
    wait_passively()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


@pytest.mark.parametrize("choice", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_user_s_choice_stays(environment, monkeypatch, choice):
    monkeypatch.setenv(choice, "1")
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == ("1" if choice == "OMP_WAIT_POLICY" else None)


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "seecoder", "info", "README.md"),
        ("-m", "train", "fit", "--config", "configs/world_seecoder.yaml"),
        ("-m", "data.build", "--help"),
        ("-m", "data.cache", "--help"),
        *(("", str(path)) for path in SCRIPTS),
    ],
    ids=" ".join,
)
def test_commands_and_scripts_decide_before_torch_is_imported(environment, command):
    kind, *rest = command
    done = subprocess.run([sys.executable, "-c", WATCH, kind, *rest], cwd=ROOT, capture_output=True, text=True)
    assert "policy PASSIVE" in done.stdout or (done.returncode == 0 and "policy" not in done.stdout), done.stderr


def test_the_library_leaves_the_policy_alone(environment):
    done = subprocess.run(
        [sys.executable, "-c", WATCH, "-m", "seecoder.encoder"], cwd=ROOT, capture_output=True, text=True
    )
    assert "policy None" in done.stdout, done.stderr

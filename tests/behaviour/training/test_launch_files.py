"""Launch files: what they start is a command that `python -m train` takes, and exit codes mean the same everywhere."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from train.cli import build_parser

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts" / "launch"


@pytest.fixture
def stubs(tmp_path):
    """A folder of commands that note their arguments; `python` and `srun` end as they are told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls.txt"
    for name in ("python", "srun", "scontrol"):
        ending = 'printf %s "$END" > "${TRAIN_EXIT_FILE:-/dev/null}"; exit $((END ? ${LAUNCHER_END:-$END} : 0))'
        body = f'printf "%s\\n" {name} "$@" >> {log}\n{ending if name != "scontrol" else ""}\n'
        (folder / name).write_text(f"#!/bin/sh\n{body}")
        (folder / name).chmod(0o755)

    def run(script: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        given = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
        log.unlink(missing_ok=True)
        done = subprocess.run([SCRIPTS / script, *arguments], env=given, capture_output=True, timeout=30, check=False)
        return done.returncode, log.read_text().splitlines() if log.exists() else []

    return run


def parse(words: list[str]):
    """What `python -m train` makes of the words after it."""
    return build_parser().parse_args(words[words.index("train") + 1 :]).fit


@pytest.mark.parametrize("name", ["torchrun", "slurm.sbatch"])
def test_scripts_are_executable_bash(name):
    assert os.access(SCRIPTS / name, os.X_OK)
    assert subprocess.run(["bash", "-n", SCRIPTS / name], check=False).returncode == 0


def test_torchrun_command_parses(stubs):
    code, words = stubs("torchrun", "configs/sd15.yaml", "--run.max_steps=7", END="0", NODES="2", DEVICES="4")
    assert code == 0
    run = parse(words).run
    assert (run.devices, run.num_nodes, run.max_steps) == (4, 2, 7)
    from torch.distributed.run import parse_args

    launcher = parse_args(words[words.index("torch.distributed.run") + 1 :])
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.max_restarts) == ("2", "4", 0)
    assert (launcher.module, launcher.training_script) == (True, "train")


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_torchrun_script_gives_the_trainings_own_code(stubs, code):
    assert stubs("torchrun", "configs/sd15.yaml", END=str(code), LAUNCHER_END="1", DEVICES="1")[0] == code


SLURM = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(
    ("code", "expected", "requeued"), [(0, 0, False), (143, 0, True), (2, 2, False), (1, 1, False)]
)
def test_slurm_puts_a_preempted_job_back_and_no_other(stubs, code, expected, requeued):
    found, words = stubs("slurm.sbatch", "configs/sd15.yaml", "--run.max_steps", "7", END=str(code), **SLURM)
    assert found == expected
    asked = "\n".join(words).endswith("scontrol\nrequeue\n17")
    assert asked == requeued
    run = parse(words[: words.index("scontrol")] if requeued else words).run
    assert (run.devices, run.num_nodes, run.max_steps) == (8, 2, 7)


def test_slurm_options_ask_for_a_signal_and_a_requeue():
    lines = (SCRIPTS / "slurm.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--signal=TERM@300", "--open-mode=append"} <= set(options)


def test_kubernetes_files_hang_together():
    service, job = yaml.safe_load_all((SCRIPTS / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(environment["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(environment["DEVICES"])
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["terminationGracePeriodSeconds"] > int(environment["GRACE"])
    assert container["command"] == ["scripts/launch/torchrun"]
    build_parser().parse_args(["fit", "--config", *container["args"]])
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {143: "Ignore", 2: "FailJob"}


def test_skypilot_runs_the_torchrun_script(stubs, tmp_path):
    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    script = tmp_path / "run.sh"
    script.write_text(task["run"].replace("source ~/venv/bin/activate", ""))
    environment = {
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "CONFIG": task["envs"]["CONFIG"],
        "END": "0",
    }
    folder = tmp_path / "bin"
    given = {**os.environ, **environment, "PATH": f"{folder}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", script], cwd=ROOT, env=given, check=False, timeout=30).returncode == 0
    words = (tmp_path / "calls.txt").read_text().splitlines()
    assert words[words.index("--master-addr") + 1] == "10.0.0.1"
    assert words[words.index("--node-rank") + 1] == "1"
    assert parse(words).run.num_nodes == 2

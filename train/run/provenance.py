"""What a run's folder says of where it came from: `run.json` and a card, beside the configuration."""

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from data.hidden_secrets import scrubbed
from data.nested import differences
from seecoder.weights.atomic import write_text
from train.run.callbacks import CheckpointSteps, StepCallback, tell_loggers
from train.run.metrics_file import read_metrics
from train.sources.held_out import listed

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "torchvision", "timm", "diffusers", "transformers", "lightning", "webdataset", "deepspeed")
_MOST_STARTS = 200


class Provenance(StepCallback):
    """Writes what a run's folder says of it, when it begins and beside its checkpoints, so that a killed run has it.

    Args:
        folder: The run's folder.
        config: The configuration as plain values.

    Attributes:
        steps: Says after which steps there is a checkpoint; given by the trainer that this is part of.
        has_begun: Whether a first batch came: what failed until then failed because of what the run was told.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.steps: CheckpointSteps | None = None
        self.has_begun = False

    def on_start(self, trainer: Trainer, stage: Any) -> None:
        """Note configuration (for loggers, too), commit and versions; a full disk does not keep a run from going on."""
        if not trainer.is_global_zero:
            return
        plain = yaml.safe_load(scrubbed(yaml.safe_dump(dict(self.config))))
        tell_loggers(trainer, lambda logger: logger.log_hyperparams(plain))
        try:
            note_config(self.folder, self.config)
            note_start(self.folder, trainer.global_step, trainer.world_size, stage.data.notes)
        except OSError as error:
            print(f"config.yaml and run.json NOT WRITTEN: {error}; training goes on", flush=True)
        self._write_card()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch came."""
        self.has_begun = True

    def on_step(self, trainer: Trainer, stage: Any, step: int) -> None:
        """Bring the card up to date beside a checkpoint."""
        if self.steps is not None and self.steps.is_due(step, trainer, stage) and trainer.is_global_zero:
            self._write_card()

    def hint(self) -> str:
        """What changed of the stage since the run began, where a checkpoint does not fit it."""
        changes = [change for change in changed_settings(self.folder, self.config) if change.startswith("stage.")]
        return f" Changed since the run began: {'; '.join(changes)}. Change it back." if changes else ""

    def _write_card(self) -> None:
        try:
            write_card(self.folder, self.config)
        except OSError as error:
            print(f"README.md of the run NOT WRITTEN: {error}; training goes on", flush=True)


def note_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the effective configuration, and say what differs from the run's earlier one."""
    for change in changed_settings(folder, config):
        print(f"changed: {change}", flush=True)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))


def changed_settings(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Names and both values of what differs from the configuration that a run's folder keeps, if it keeps one."""
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text()) or {}
        return [f"{name}: {was} -> {now}" for name, was, now in differences(old, config)]
    except (OSError, ValueError, AttributeError, yaml.YAMLError):  # there is none, or it is damaged
        return []


def note_start(folder: Path, step: int, processes: int, notes: Mapping[str, str] | None = None) -> None:
    """Add this start to `run.json`: when, from which step, with which commit and versions.

    Args:
        folder: The run's folder.
        step: Optimizer step that the run starts or goes on from.
        processes: Training processes.
        notes: What is odd about the data, by a name.
    """
    path = folder / "run.json"
    try:
        starts = list(json.loads(path.read_text())["starts"])
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: it is a note, and no run fails for it
        starts = []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "step": step,
            "processes": processes,
            **(notes or {}),
            **commit(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": {name: version(name) for name in _PACKAGES if find_spec(name)},
        }
    )
    write_text(path, json.dumps({"starts": starts[-_MOST_STARTS:]}, indent=1) + "\n")


def commit() -> dict[str, Any]:
    """Commit of the checkout, and whether files differ from it; nothing outside a checkout of this project."""
    try:
        top, head = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != _ROOT:  # a copy within another project's checkout
            return {}
        return {"commit": head, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def write_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `README.md`: what was trained on what, the latest figures, and what to do with it."""
    stage, data = config["stage"], config["data"]
    options = stage.get("init_args", {})
    metrics = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else {}
    last = max((step for line in metrics.values() for step, _ in line), default=0)
    rows = {
        "trained by": stage["class_path"],
        "base": options.get("base") or options.get("vae") or "none",
        "data": ", ".join(listed(data.get("init_args", {}).get("shards", data["class_path"]))),
        "steps": f"{last:,} of {config['run']['max_steps']:,}",
        **{name: f"{metrics[name][-1][1]:.5g}" for name in sorted(metrics) if name.startswith(("held_out", "gap_"))},
    }
    table = "\n".join(f"| {name} | {str(value).replace('|', ' ')} |" for name, value in rows.items())
    out = f"seecoder export {folder} OUT                       # a folder that diffusers users load\n"
    text = (
        f"# {folder.resolve().name}\n\n| | |\n|---|---|\n{table}\n\n"
        "Weights inherit what the licences of base, backbone and data ask for, which this card does not know.\n\n"
        "```\n"
        f"python -m train fit --config {folder}/config.yaml   # goes on\n"
        f"python -m train report {folder}                     # report.html\n"
        f"{out if stage['class_path'].endswith('.SeeCoderStage') else ''}```\n\n"
        "Commit and versions of every start are in run.json, the configuration as it was run in config.yaml:\n\n"
        f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```\n"
    )
    write_text(folder / "README.md", text)

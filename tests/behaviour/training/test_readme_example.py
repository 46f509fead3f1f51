"""The stage and the data source that train/README.md shows how to write are trained as they stand there."""

import re
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "train" / "README.md"


@pytest.fixture
def example(tmp_path, monkeypatch) -> str:
    """The example as a module that can be imported; its name."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (tmp_path / "readme_example.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "readme_example"
    sys.modules.pop("readme_example", None)


def test_the_example_learns_the_mean(example, fit, load, tmp_path):
    stage = {"optimizer": {"lr": 0.1, "weight_decay": 0.0}, "ema": {"decay": 0.5}}
    config = {
        "run": {"folder": str(tmp_path / "run"), "max_steps": 200, "accelerator": "cpu", "checkpoint_every": 100},
        "stage": {"class_path": f"{example}.MeanStage", "init_args": stage},
        "data": {"class_path": f"{example}.Numbers", "init_args": {"batch_size": 10}},
    }
    assert fit(config) == 0
    state = load(tmp_path / "run" / "step-00000200.ckpt")["state_dict"]
    assert float(state["mean"]) == pytest.approx(4.5, abs=0.1)


def test_the_map_names_every_file():
    text = README.read_text()
    files = [path for path in README.parent.rglob("*.py") if not path.name.startswith("__")]
    assert len(files) > 30
    for path in files:
        folder = path.relative_to(README.parent).parts[0]
        assert path.name in text or (folder in ("estimate", "report") and f"`{folder}/`" in text), path

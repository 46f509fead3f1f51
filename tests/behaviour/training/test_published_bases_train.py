"""Training on bases with the configurations that they are published with; the scheduler gives the betas alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.published import BASES, XL, write_published


@pytest.mark.parametrize("name", [name for name in BASES if name not in ("lcm", "playground-2.5")])
def test_two_steps_are_trained(name: str, settings: Any, fit: Callable[..., int], tmp_path: Path) -> None:
    base = write_published(tmp_path / name, name)
    config = settings(**{"stage.init_args.base": str(base), "run.max_steps": 2, "run.checkpoint_every": 2})
    encoder = config["stage"]["init_args"]["encoder"]
    encoder["context_dim"] = BASES[name][0]["cross_attention_dim"]
    encoder["pooled_dim"] = 1280 if name in XL else None
    assert fit(config) == 0
    assert list((tmp_path / "run").glob("step-00000002.ckpt"))


def test_noise_of_another_kind_is_refused_in_a_plan_and_before_the_first_step(
    settings: Any, fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_published(tmp_path / "playground-2.5", "playground-2.5")
    config = settings(**{"stage.init_args.base": str(base), "run.max_steps": 2})
    config["stage"]["init_args"]["encoder"] |= {"context_dim": 2048, "pooled_dim": 1280}
    for arguments in ([], ["--plan"]):
        assert fit(config, *arguments) == 2
        error = capsys.readouterr().err
        assert "`scheduler`='EDMDPMSolverMultistepScheduler' of the base must be one that is made from betas" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""A short storm; `python -m tests.behaviour.training.disturbed` is the long one."""

import pytest

from tests.behaviour.training.disturbed import run_disturbed


@pytest.mark.filterwarnings("ignore:This process.*use of fork:DeprecationWarning")
@pytest.mark.timeout(300)
def test_kills_faults_and_a_nan_change_nothing(settings, shards, tmp_path):
    def steady(**changes):
        fixed = {"run.threads": 1, "run.checkpoint_every": 3, "data.init_args.held_out_world": False}
        return settings(**fixed, **changes)

    happened = run_disturbed(steady, shards, tmp_path, steps=40, seed=1, longest=3.0)
    assert happened["exit 0"] == 1
    assert sum(happened[f"ends {end}"] for end in ("kill -9", "SIGTERM", "Ctrl-C")) > 0

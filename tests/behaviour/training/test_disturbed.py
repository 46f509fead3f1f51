"""A short storm; `python -m tests.behaviour.training.disturbed` is the long one."""

import pytest

from tests.behaviour.training.disturbed import FAULTS, run_disturbed
from tests.fixtures.training import BUCKETS


@pytest.mark.filterwarnings("ignore:This process.*use of fork:DeprecationWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "buckets", "steps"), [("shards", None, 40), ("mixed_shards", BUCKETS, 20)])
def test_kills_faults_and_a_nan_change_nothing(settings, request, tmp_path, kind, buckets, steps):
    def steady(**changes):
        fixed = {"run.threads": 1, "run.checkpoint_every": 3, "data.init_args.held_out_world": False}
        return settings(**fixed, **changes, **{"data.init_args.buckets": buckets})

    shards = request.getfixturevalue(kind)
    happened = run_disturbed(steady, shards, tmp_path, steps=steps, seed=1, longest=15)
    assert happened["exit 0"] >= 1
    assert sum(happened[f"ends {end}"] for end in ("kill -9", "SIGTERM", "Ctrl-C")) > 0
    assert all(happened[f"meets {fault}"] > 0 for fault in FAULTS)

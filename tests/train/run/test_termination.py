import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.run.termination import Termination, ToldToStop, exit_code, leaving_on_signals


def trainer() -> Any:
    connector = SimpleNamespace(register_signal_handlers=None)
    return SimpleNamespace(_signal_connector=connector, world_size=1, should_stop=False)


STAGE: Any = SimpleNamespace(device=torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_present_step_and_handlers_come_back(number):
    before = signal.getsignal(number)
    termination, given = Termination(), trainer()
    termination.setup(given, STAGE, "fit")
    termination.on_start(given, STAGE)
    termination.on_step(given, STAGE, 1)
    assert not given.should_stop
    os.kill(os.getpid(), number)
    assert not given.should_stop, "only a flag is set"
    termination.on_step(given, STAGE, 2)
    assert given.should_stop
    assert termination.stopped_by_signal == number
    termination.on_exception(given, STAGE, RuntimeError())
    assert signal.getsignal(number) == before


def test_a_second_interrupt_stops_at_once_but_an_echo_of_the_first_does_not(monkeypatch, capfd):
    now = SimpleNamespace(seconds=5.0)
    monkeypatch.setattr("train.run.termination.time", SimpleNamespace(monotonic=lambda: now.seconds))
    termination, given = Termination(), trainer()
    termination.setup(given, STAGE, "fit")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        now.seconds += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        now.seconds += 0.6
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(ToldToStop, match="without saving") as told:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        termination.teardown(given, STAGE, "fit")
    assert told.value.exit_code == 130
    assert capfd.readouterr().err.count("will save after this step") == 1


def test_schedulers_see_143_and_shells_130():
    assert [exit_code(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == [143, 143, 130]


def test_a_time_budget_stops_without_a_signal(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("train.run.termination.time", SimpleNamespace(monotonic=lambda: now.seconds))
    termination, given = Termination(max_minutes=2.0), trainer()
    termination.on_start(given, STAGE)
    for now.seconds, expected in ((120.0, False), (121.0, True)):
        termination.on_step(given, STAGE, 1)
        assert given.should_stop is expected
    assert not termination.stopped_by_signal


def test_before_training_listens_a_signal_leaves_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ToldToStop), leaving_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before

from types import SimpleNamespace
from typing import Any

from train.run.callbacks import CheckpointSteps, StepCallback, is_due, tell_loggers


def trainer(step: int = 0, max_steps: int = 10, should_stop: bool = False) -> Any:
    return SimpleNamespace(global_step=step, max_steps=max_steps, should_stop=should_stop)


def stage(skipped_in_a_row: int = 0) -> Any:
    return SimpleNamespace(guard=SimpleNamespace(skipped_in_a_row=skipped_in_a_row))


def test_a_step_callback_acts_once_a_step_whatever_the_micro_batches():
    seen = []

    class Noting(StepCallback):
        def on_step(self, trainer: Any, stage: Any, step: int) -> None:
            seen.append(step)

    callback: Any = Noting()
    callback.on_train_start(trainer(4), None)
    for step in (4, 4, 5, 5, 5, 6):  # the optimizer steps after the last micro-batch of each
        callback.on_train_batch_end(trainer(step), None, None, None, 0)
    assert seen == [5, 6]


def test_what_happens_every_few_steps_happens_at_the_end_too():
    assert [step for step in range(1, 11) if is_due(step, 4, trainer())] == [4, 8, 10]
    assert is_due(3, 4, trainer(should_stop=True))


def test_a_logger_that_fails_is_left_out_with_a_word_and_the_others_go_on(capsys):
    class Full:
        def log(self) -> None:
            raise OSError(28, "No space left on device")

    told: list[int] = []
    trainer: Any = SimpleNamespace(loggers=[Full(), SimpleNamespace(log=lambda: told.append(1))])
    for _ in range(2):
        tell_loggers(trainer, lambda logger: logger.log())
    assert told == [1, 1]
    said = capsys.readouterr().out
    assert said == "Full STOPS: [Errno 28] No space left on device; training goes on without it\n"


def test_a_checkpoint_waits_while_steps_are_thrown_away():
    steps = CheckpointSteps(every=2)
    skipped = {1: 1, 2: 2, 3: 3, 4: 0, 5: 0}
    assert [step for step, in_a_row in skipped.items() if steps.is_due(step, trainer(), stage(in_a_row))] == [4]


def test_a_checkpoint_that_waited_comes_with_the_next_good_step():
    steps = CheckpointSteps(every=4)
    skipped = {3: 0, 4: 1, 5: 0, 6: 0}
    assert [step for step, in_a_row in skipped.items() if steps.is_due(step, trainer(), stage(in_a_row))] == [5]


def test_a_checkpoint_that_was_asked_for_by_its_step_or_is_the_last_does_not_wait():
    assert CheckpointSteps(every=5, keep=(3,)).is_due(3, trainer(), stage(1))
    assert CheckpointSteps(every=5).is_due(10, trainer(), stage(1))


def test_all_who_ask_after_one_step_are_answered_alike():
    steps = CheckpointSteps(every=2)
    assert not steps.is_due(2, trainer(), stage(1))
    assert not steps.is_due(2, trainer(), stage(0)), "the first answer stands"
    assert steps.is_due(3, trainer(), stage(0))

import pytest
import torch

from train.run.evaluation import Evaluation
from train.run.provenance import Provenance
from train.run.recorder import DataWait, Recorder
from train.run.termination import Termination
from train.run.trainer import build_trainer, extra_loggers
from train.settings import RunSettings


def test_the_parts_act_in_their_order_and_waiting_is_measured_last(tmp_path):
    trainer, termination = build_trainer(RunSettings(str(tmp_path), 3, accelerator="cpu"), 4, Provenance(tmp_path, {}))
    kinds = [type(callback) for callback in trainer.callbacks]
    order = [kinds.index(kind) for kind in (Termination, Recorder, Evaluation, DataWait)]
    assert order == sorted(order)
    assert kinds[-1] is DataWait
    assert trainer.callbacks[kinds.index(Termination)] is termination
    assert trainer.loggers == []


def test_accumulation_follows_from_the_global_batch(tmp_path):
    run = RunSettings(str(tmp_path), 3, accelerator="cpu", global_batch=24, threads=torch.get_num_threads())
    trainer, _ = build_trainer(run, 4, Provenance(tmp_path, {}))
    assert trainer.accumulate_grad_batches == 6
    with pytest.raises(ValueError, match="`global_batch`=24 must be a multiple of 5"):
        build_trainer(run, 5, Provenance(tmp_path, {}))


def test_other_loggers_are_made_where_they_are_asked_for(tmp_path):
    (logger,) = extra_loggers(RunSettings(str(tmp_path), 3, loggers=("tensorboard",)))
    assert type(logger).__name__ == "TensorBoardLogger"
    assert extra_loggers(RunSettings(str(tmp_path), 3)) == []

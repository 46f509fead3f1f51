"""Lightning's trainer with our own checkpoints, log, guard and signal handling."""

import logging
import sys
import warnings
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from data.hidden_secrets import scrubbed
from seecoder.weights.atomic import write_text
from train.run.callbacks import CheckpointSteps
from train.run.checkpoints import AtomicCheckpointIO, Checkpoints
from train.run.evaluation import Evaluation
from train.run.provenance import Provenance
from train.run.recorder import DataWait, Recorder
from train.run.termination import Termination
from train.settings import RunSettings


def build_trainer(
    run: RunSettings, batch_size: int, provenance: Provenance, start_step: int = 0
) -> tuple[Trainer, Termination]:
    """Make the trainer of a run.

    Args:
        run: Its settings.
        batch_size: Samples of one micro-batch of one process.
        provenance: Keeps what the run's folder says of it.
        start_step: Optimizer step of the checkpoint that the run goes on from.

    Returns:
        The trainer, and the callback that knows whether it was told to stop.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    _silence_lightning()
    folder = Path(run.folder)
    accumulate = run.micro_batches(batch_size)
    samples_a_step = batch_size * accumulate * run.devices * run.num_nodes
    writer = AtomicCheckpointIO()
    recorder = Recorder(folder, run.log_every, samples_a_step)
    termination = Termination(run.max_minutes)
    steps = CheckpointSteps(run.checkpoint_every, run.keep_steps)
    provenance.steps = steps
    callbacks = [  # the order matters: stop flag, log, evaluation and export, checkpoint, the user's, waiting
        termination,
        recorder,
        Evaluation(folder, recorder, termination, run.evaluate_every, steps),
        Checkpoints(writer, folder, steps, run.keep_checkpoints, run.keep_best),
        provenance,
        *run.callbacks,
        DataWait(recorder),
    ]
    strategy: Any = run.strategy
    precision: Any = run.precision
    plugins: list[Any] = [writer]
    if run.zero_stage:
        from train.run.zero import make_strategy

        strategy, zero_precision = make_strategy(run, batch_size)
        precision, plugins = None, [writer, zero_precision]
    trainer = Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy=strategy,
        precision=precision,
        max_steps=run.max_steps,
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        plugins=plugins,
        logger=extra_loggers(run, start_step),
        profiler=run.profiler,
        deterministic=run.deterministic,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    return trainer, termination


def _silence_lightning() -> None:
    """Hide what does not apply: frozen modules stay in eval mode, our streams find their place by step."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what they found is said there
    for message in (
        r".*does not have many workers.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*module\(s\) in eval mode at the start of training.*",
        r".*your dataloader is not resumable.*",
        r".*smaller than the logging interval.*",
        r".*across ranks is zero.*",
        r".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message=message)


class _WandbLogger(WandbLogger):
    """Lightning's, begun without the secrets of `sys.argv`, which W&B keeps; Lightning starts other processes by it."""

    @property
    def experiment(self) -> Any:
        sys.argv[1:] = map(scrubbed, sys.argv[1:])
        return super().experiment


def extra_loggers(run: RunSettings, start_step: int = 0) -> list[Any]:
    """Loggers beside `metrics.csv`, each with one run over all starts of ours, without what came after `start_step`."""
    made = {
        "tensorboard": lambda: TensorBoardLogger(run.folder, name="", version="tensorboard", purge_step=start_step + 1),
        "wandb": lambda: _WandbLogger(save_dir=run.folder, project="seecoder", id=_wandb_id(Path(run.folder))),
    }
    return [made[name]() for name in run.loggers]


@rank_zero_only
def _wandb_id(folder: Path) -> str:
    """Id of the run at W&B, kept in its folder: a continued run goes on there. Other processes write nothing there."""
    path = folder / "wandb_id.txt"
    if not path.is_file():
        write_text(path, token_hex(8))
    return path.read_text()

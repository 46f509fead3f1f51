"""What all trainings share: optimizer, rate by step, averaging, guard, and checkpoints without frozen weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from data.shards.plan import derive_seed
from seecoder.export.trained_part import find_checkpoint, read_checkpoint
from seecoder.weights.digests import tensors_sha256
from seecoder.weights.safetensors_files import WeightsError
from seecoder.weights.strict_loading import check_fit
from train.optimizers import COMMON, build_optimizer, first_state, learning_rate
from train.run.guards import GradientGuard, Gradients, not_finite
from train.settings import EmaSettings, GuardSettings, OptimizerSettings
from train.stages.ema import Ema, OptimizerAverage


class Stage(LightningModule):
    """Base of every training; a subclass says what is trained, its loss, how it is evaluated and exported.

    Args:
        optimizer: The optimizer and its learning rate.
        ema: Average of the trained weights, which evaluation and export use; None switches it off.
        guard: When a step is thrown away.
        seed: Seed of initial weights, noise, timesteps and dropout.
    """

    frozen_names: tuple[str, ...] = ()  # paths of frozen modules: always eval, no gradients, not in checkpoints

    def __init__(
        self,
        optimizer: OptimizerSettings,
        ema: EmaSettings | None = None,
        guard: GuardSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.ema_settings = ema
        tried = build_optimizer(optimizer, [("weight", nn.Parameter(torch.zeros(2, 2)))])  # before anything is loaded
        if ema is not None and hasattr(tried, "eval"):
            raise ValueError(f"`ema`={ema} must be null with `optimizer.name`={optimizer.name}, which averages itself.")
        self.seed = seed
        self.guard = GradientGuard(guard or GuardSettings())
        self.ema: Ema | None = None
        self.strict_loading = False  # checkpoints lack frozen weights; `on_load_checkpoint` compares the others itself
        self.frozen_digests: dict[str, str] = {}  # of some values of each tensor: others are other weights
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of one micro-batch; may call `record`."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out samples, with the averaged weights in place."""
        return {}

    def export(self, folder: Path) -> dict[str, float] | None:
        """Write what users of the trained weights load, with the averaged weights in place; may give figures."""

    @property
    def data(self) -> Any:
        """The run's data source."""
        trainer: Any = self.trainer
        return trainer.datamodule

    def freeze_parts(self) -> None:
        """Freeze the modules named in `frozen_names`."""
        for name in self.frozen_names:
            module = self.get_submodule(name).eval().requires_grad_(False)
            some = {key: value.flatten()[:: max(1, value.numel() // 64)] for key, value in module.state_dict().items()}
            self.frozen_digests[name] = tensors_sha256(some)[:12]

    def train(self, mode: bool = True) -> "Stage":
        """Switch modes; frozen parts stay in eval mode, or their drop-path and BatchNorm would wake up."""
        super().train(mode)
        for name in self.frozen_names:
            self.get_submodule(name).eval()
        return self

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights that the optimizer holds."""
        return ((name, weight) for name, weight in self.named_parameters() if weight.requires_grad)

    def is_frozen(self, key: str) -> bool:
        """Whether a key of the state belongs to a frozen module."""
        return key.startswith(tuple(f"{name}." for name in self.frozen_names))

    def on_fit_start(self) -> None:
        """Refuse weights that are not finite, frozen ones too; begin the average, unless a checkpoint brought one."""
        if names := not_finite(self.state_dict()):
            raise WeightsError(f"`{names[0]}` must be finite, but holds a NaN or an infinity. Load whole weights.")
        if self.ema_settings is not None and self.ema is None:
            self.ema = Ema(self.trained_parameters(), self.ema_settings)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and jitter by step, micro-batch and process, so that nothing depends on history."""
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(derive_seed(self.seed, "dropout", self.global_step, micro_batch, self.global_rank))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one micro-batch."""
        loss = self.loss(batch)
        self.guard.remember(batch, loss)
        self.record("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer over exactly the trained weights."""
        optimizer = build_optimizer(self.optimizer_settings, self.trained_parameters())
        if hasattr(optimizer, "eval"):
            self.ema = OptimizerAverage(self.trained_parameters(), optimizer)
        told = (*COMMON, *self.optimizer_settings.arguments)
        self._told = [{name: group[name] for name in told if name in group} for group in optimizer.param_groups]
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip, or throw a bad step away."""
        part = getattr(self.trainer.strategy, "gradients", None)  # DeepSpeed leaves each process a part of them
        gradients = part() if part else Gradients(weight for _, weight in self.trained_parameters())
        norm = self.guard.check(gradients, self.global_step, self.optimizer_settings.clip_norm)
        self.record("gradient_norm", norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Apply the settings of this step, step, average."""
        rate = learning_rate(self.global_step, self.trainer.max_steps, self.optimizer_settings)
        for group, told in zip(optimizer.param_groups, self._told, strict=True):
            is_tensor = isinstance(group["lr"], Tensor)  # torchao's
            group.update(told, lr=group["lr"].fill_(rate) if is_tensor else rate)  # a loaded state has the old run's
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update()
        self._sums["learning_rate"], self._counts["learning_rate"] = torch.tensor(rate), 1

    def record(self, name: str, value: Tensor) -> None:
        """Add to the mean that the next line of the log shows; no synchronisation with a GPU."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def take_records(self) -> dict[str, tuple[float, int]]:
        """Sums and counts since the last call: what means over processes are made of."""
        records = {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return records

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out, put the average and the guard in."""
        state = checkpoint.get("state_dict", {})
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not self.is_frozen(key)}
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["frozen"] = self.frozen_digests
        checkpoint["optimizer"] = self.optimizer_settings.name
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare keys, take the average, and let the loops start afresh at the checkpoint's optimizer step.

        The batch of an optimizer step is a pure function of that step (`StageData`), so Lightning's position
        within an epoch, which counts batches of one process, would only be in the way when the number of processes
        changes.

        Raises:
            WeightsError: A trained weight is missing from the checkpoint, or of another shape, or the checkpoint has
                one that the module lacks, or its optimizer is another one, or keeps less of each weight.
        """
        begun = checkpoint.get("optimizer", "adamw")  # absent from checkpoints of earlier versions
        if begun != (name := self.optimizer_settings.name):
            raise WeightsError(f"`optimizer.name`={name} must be {begun}, as in the checkpoint. Or use `init_from`.")
        self._check_optimizer_state(checkpoint)
        own = {key: value for key, value in self.state_dict().items() if not self.is_frozen(key)}
        trained = {key: value for key, value in checkpoint["state_dict"].items() if not self.is_frozen(key)}
        check_fit(trained, own, source="checkpoint", target=type(self).__name__)
        for name, was in checkpoint.get("frozen", {}).items():
            if (now := self.frozen_digests.get(name)) != was and self.trainer.is_global_zero:
                print(f"note: `{name}` has other weights than at the checkpoint ({was} there, {now} now)", flush=True)
        if (source := type(self.data).__qualname__) not in checkpoint and self.trainer.is_global_zero:
            print(f"note: the checkpoint has no state of {source}; its steps count as steps of the present batch")
        self.guard.load_state_dict(checkpoint["guard"])
        if self.ema_settings is not None and "ema" in checkpoint:
            self.ema = self.ema or Ema(self.trained_parameters(), self.ema_settings)
            self.ema.load_state_dict(checkpoint["ema"])
        fresh = self.trainer.fit_loop.state_dict()
        kept = {key: value for key, value in checkpoint["loops"]["fit_loop"].items() if "optimization" in key}
        checkpoint["loops"]["fit_loop"] = fresh | kept

    def _check_optimizer_state(self, checkpoint: dict[str, Any]) -> None:
        """Refuse arguments, such as `amsgrad`, that need what the checkpoint's optimizer did not keep."""
        for saved in checkpoint.get("optimizer_states", ()):
            kept = {name for state in saved["state"].values() for name in state}
            needed = {name for state in first_state(self.optimizer_settings).values() for name in state}
            if lacking := sorted(needed - kept):
                arguments = self.optimizer_settings.arguments
                raise WeightsError(
                    f"`optimizer.arguments`={arguments} cannot be continued with: the checkpoint has no "
                    f"{', '.join(lacking)}. Take the arguments that the run began with, or use `init_from`."
                )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Averaged weights, eval mode, no gradients; everything comes back afterwards, random state included."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            averaged = self.ema.applied() if self.ema is not None else nullcontext()
            with torch.random.fork_rng(devices=[]), torch.no_grad(), averaged:
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def read_stage_weights(source: Path) -> dict[str, Tensor]:
    """Read another run's weights: averages where there are, with everything else as in the checkpoint.

    Args:
        source: A checkpoint, or a run's folder, whose newest complete one is taken.

    Raises:
        FileNotFoundError: There is none.
        WeightsError: It is no whole checkpoint.
    """
    checkpoint = read_checkpoint(find_checkpoint(source))
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise WeightsError(f"`init_from`={source} has no `state_dict`; give a checkpoint of `python -m train fit`.")
    return {**checkpoint["state_dict"], **checkpoint.get("ema", {}).get("averages", {})}


def save_half(model: Any, folder: Path, **config: Any) -> None:
    """Write a half-precision copy of a diffusers model; the model itself is not touched.

    Args:
        model: The model.
        folder: Where its configuration and weights go.
        config: Values of the configuration that the copy has in place of the model's.
    """
    half = copy.deepcopy(model).to(memory_format=torch.contiguous_format).half()
    half.register_to_config(**config)
    half.save_pretrained(folder)

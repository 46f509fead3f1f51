"""Optimizers by name, any class of torch or of a package, and the learning rate by step."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from train.settings import OptimizerSettings

COMMON = ("betas", "eps", "weight_decay")  # settings that most optimizers have
KNOWN = {  # for others give the class path
    "adamw": "torch.optim.AdamW",
    "adafactor": "torch.optim.Adafactor",
    "muon": "torch.optim.Muon",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw8bit_torchao": "torchao.optim.AdamW8bit",
    "lion": "lion_pytorch.Lion",
    "prodigy": "prodigyopt.Prodigy",
    "schedule_free": "schedulefree.AdamWScheduleFree",
}
_MATRICES_ONLY = ("torch.optim.Muon",)  # all other weights go to AdamW
_ARGUMENTS = {  # what is given unless the settings say otherwise
    "torch.optim.AdamW": {"fused": True},
    "torch.optim.Muon": {"adjust_lr_fn": "match_rms_adamw"},  # so that one learning rate serves both
}


class Several(Optimizer):
    """Several optimizers as one, each with weights of its own; state and groups are saved as one optimizer's.

    Args:
        optimizers: They work on the state and the groups of this one.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self.optimizers = optimizers

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let every one make its step, after one call of the closure."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = iter(self.param_groups)  # others than before where a state was loaded
        for one in self.optimizers:
            one.state, one.param_groups = self.state, [next(groups) for _ in one.param_groups]
            one.step()
        return loss


def build_optimizer(settings: OptimizerSettings, named_weights: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """Make the optimizer that settings name.

    Args:
        settings: Its name, arguments and rate.
        named_weights: What it moves.

    Raises:
        ValueError: There is no such class, its package is not installed, or it does not take its settings.
    """
    named, path = list(named_weights), KNOWN.get(settings.name, settings.name)
    given = {name: value for name in COMMON if (value := getattr(settings, name)) is not None}

    def make(path: str, weights: list[nn.Parameter], arguments: Mapping[str, Any]) -> Optimizer:
        cls: Any = _imported(path)
        own = {**_ARGUMENTS.get(path, {}), **arguments}
        try:
            return cls(weights, lr=settings.lr, **own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`optimizer.name`={settings.name} does not take its settings: {error}") from error

    if path not in _MATRICES_ONLY:
        return make(path, [weight for _, weight in named], {**given, **settings.arguments})
    matrices = {name: weight for name, weight in named if is_matrix(name, weight)}
    taken = {name: given[name] for name in given if name in inspect.signature(_imported(path)).parameters}
    rest = [weight for name, weight in named if name not in matrices]
    first = [make(path, [*matrices.values()], {**taken, **settings.arguments})] if matrices else []
    return Several([*first, *([make(KNOWN["adamw"], rest, given)] if rest else [])])


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon moves it. An embedding is a matrix by its shape alone; those of the encoder have other names."""
    return weight.ndim == 2 and name.endswith("weight")


def first_state(settings: OptimizerSettings, name: str = "weight", side: int = 8) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of a square matrix of this name after one step."""
    weight = nn.Parameter(torch.zeros(side, side))
    optimizer = build_optimizer(settings, [(name, weight)])
    weight.grad = torch.ones_like(weight)
    getattr(optimizer, "train", lambda: None)()
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
    return optimizer.state_dict()["state"]


def state_bytes(settings: OptimizerSettings, name: str = "weight") -> float:
    """Measure what an optimizer keeps of each weight of a large matrix of this name, in bytes, by saving it."""
    torch.save(first_state(settings, name, 768), saved := BytesIO())
    return round(saved.tell() / 768**2, 1)


def _imported(path: str) -> type[Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        is_absent = isinstance(error, ModuleNotFoundError)
        way = f"`pip install {module.partition('.')[0]}` brings it" if is_absent else f"Known are {', '.join(KNOWN)}"
        raise ValueError(f"`optimizer.name`={path} cannot be imported ({error}). {way}.") from error


def learning_rate(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: Optimizer steps done before this one; the first step is 0.
        max_steps: Optimizer steps of the whole run; where "cosine" ends.
        settings: Peak rate and shape.

    Returns:
        The rate; with warm-up the first step already has lr / warmup_steps, so that no step is lost.
    """
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.lr * rise * _decay(step, max_steps, settings)


def turning_points(max_steps: int, settings: OptimizerSettings) -> dict[int, float]:
    """Learning rates by step where they say most: first, after warm-up, in the middle, at milestones, last.

    Args:
        max_steps: Optimizer steps of the whole run.
        settings: Peak rate and shape.
    """
    marks = {0, settings.warmup_steps, max_steps // 2, max_steps - 1, *settings.milestones}
    return {step: learning_rate(step, max_steps, settings) for step in sorted(marks) if step < max_steps}


def _decay(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    if settings.schedule == "steps":
        return settings.gamma ** sum(step >= milestone for milestone in settings.milestones)
    if settings.schedule == "cosine":
        start = settings.decay_start * max_steps
        progress = min(1.0, max(0.0, (step - start) / max(1.0, max_steps - start)))
        return settings.final_factor + (1 - settings.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0

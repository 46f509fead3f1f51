"""What a run is told, as frozen dataclasses; `train.cli` fills them from YAML and the command line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from seecoder.checks import FLAG, Rule, check, choice, number, optional, some_of, whole

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed")
ZERO_STAGES = {"deepspeed_stage_1": 1, "deepspeed_stage_2": 2}  # by the strategy's name
STRATEGIES = ("auto", "ddp", *ZERO_STAGES)

BELOW_ONE = Rule(lambda value: number(0.0, 1.0).accepts(value) and value < 1, "a number from 0 to below 1")
BETAS = some_of(BELOW_ONE, "two numbers from 0 to below 1", minimum=2, maximum=2)


def _is_rising(steps: Any) -> bool:
    return some_of(whole(1), "").accepts(steps) and list(steps) == sorted(set(steps))


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its learning rate, which is a pure function of the optimizer step.

    Attributes:
        name: "adamw", "adafactor", "muon" (for matrices, with AdamW for the rest), "adamw8bit" (bitsandbytes),
            "adamw8bit_torchao", "lion", "prodigy", "schedule_free", or where a class can be imported from.
        arguments: More arguments of its class, such as `{d_coef: 2}`.
        lr: Peak learning rate. Each optimizer wants its own: Prodigy 1, Lion a third to a tenth of AdamW's.
        betas: Decay of the moments; None, as for the two below, for the optimizer's own default. AdamW's is 0.9, 0.999.
        eps: Term of the denominator; AdamW's is 1e-8.
        weight_decay: Decoupled decay; AdamW's is 0.01.
        warmup_steps: Steps of linear rise from zero.
        schedule: "constant"; "cosine" to `lr * final_factor` at the last step; or "steps", times `gamma` at each
            milestone.
        decay_start: Fraction of the run at which "cosine" begins to fall.
        final_factor: Where "cosine" ends, relative to `lr`.
        milestones: Optimizer steps at which "steps" multiplies the rate.
        gamma: Factor of "steps".
        clip_norm: Largest global gradient norm; None switches clipping off.
    """

    lr: float = 1e-3
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    decay_start: float = 0.0
    final_factor: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    clip_norm: float | None = 1.0
    name: str = "adamw"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            self,
            lr=number(0.0),
            betas=optional(BETAS),
            eps=optional(number(0.0)),
            weight_decay=optional(number(0.0)),
            warmup_steps=whole(0),
            schedule=choice("constant", "cosine", "steps"),
            decay_start=BELOW_ONE,
            final_factor=number(0.0, 1.0),
            milestones=Rule(_is_rising, "steps from 1 up that rise"),
            gamma=number(0.0),
            clip_norm=optional(number(0.0, above_minimum=True)),
        )
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Refuse what belongs to another schedule, or is missing for the one that is chosen."""
        for name, schedule in (("decay_start", "cosine"), ("final_factor", "cosine"), ("milestones", "steps")):
            if getattr(self, name) and self.schedule != schedule:
                raise ValueError(
                    f"`{name}`={getattr(self, name)} must be left out with `schedule`={self.schedule}, where it does "
                    f"nothing. Choose `schedule`={schedule}, or leave it out."
                )
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("`milestones`=() must be the steps at which `schedule`=steps falls. Or use constant.")


@dataclass(frozen=True)
class EmaSettings:
    """Exponential moving average of the trained weights, kept in float32.

    Attributes:
        decay: Final decay for each optimizer step.
        warmup: Let the decay rise as (1 + n) / (10 + n), so that early averages forget the random start.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        check(self, decay=BELOW_ONE, warmup=FLAG)


@dataclass(frozen=True)
class GuardSettings:
    """When an optimizer step is thrown away.

    Attributes:
        max_norm_ratio: Skip a step whose gradient norm is above this many times the running mean; None only skips
            non-finite ones.
        max_loss_ratio: Skip a step in which the mean loss of any process is above this many times the running mean;
            None only skips non-finite ones. A loss varies with the drawn timesteps, so a small batch needs a large
            ratio.
        max_skipped_in_a_row: Stop the run when more steps than this were skipped one after the other.
    """

    max_norm_ratio: float | None = None
    max_loss_ratio: float | None = None
    max_skipped_in_a_row: int = 10

    def __post_init__(self) -> None:
        ratio = optional(number(1.0, above_minimum=True))
        check(self, max_norm_ratio=ratio, max_loss_ratio=ratio, max_skipped_in_a_row=whole(0))


@dataclass(frozen=True)
class RunSettings:
    """Everything about a run that is neither the stage (model, loss) nor the data.

    Attributes:
        folder: Where checkpoints, exports and logs go; the same command with the same folder continues the run.
        max_steps: Optimizer steps of the whole run; raise it to extend a finished run.
        max_minutes: Save and stop cleanly after this much time; the run can be continued. None: no limit.
        accumulate: Micro-batches of each optimizer step.
        global_batch: Samples of each optimizer step over all processes; when given, `accumulate` follows from it.
        precision: Lightning's name: "32-true" or "bf16-mixed". Others are refused: "16-mixed" scales the loss behind
            the guard's back, "bf16-true" would round the noise schedule.
        accelerator: Lightning's name: "auto", "cpu", "gpu", "cuda" or "mps".
        devices: Processes on this node.
        num_nodes: Nodes.
        strategy: Lightning's name: "auto", "ddp", "deepspeed_stage_1" (AdamW's state is shared out over processes),
            "deepspeed_stage_2" (gradients, too); those that offload or share out weights are refused.
        threads: CPU threads of torch in each process; None leaves torch's choice.
        log_every: Steps between two lines of the log.
        evaluate_every: Steps between two evaluations on held-out samples; 0 evaluates at checkpoints only.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay.
        keep_steps: Steps at which a checkpoint is written and stays for good.
        keep_best: Figure of `metrics.csv`, lower being better, whose best checkpoint stays as well and is named in
            `best.json`; None for none.
        changed_order: What happens to a run that goes on after its data or their seed have changed, so that samples
            would come twice or never: "refuse", or "new_epoch", which begins the next epoch there.
        loggers: More places for the log beside `metrics.csv`: "tensorboard", "wandb"; with settings and preview sheets.
        callbacks: Lightning callbacks of your own, each a `class_path` and `init_args`.
        profiler: Lightning's name: "simple", "advanced" or "pytorch"; printed at the end.
        deterministic: Refuse operations that are not bit-reproducible.
    """

    folder: str
    max_steps: int
    max_minutes: float | None = None
    accumulate: int = 1
    global_batch: int | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    threads: int | None = None
    log_every: int = 50
    evaluate_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_steps: tuple[int, ...] = ()
    keep_best: str | None = "held_out_loss"
    changed_order: Literal["refuse", "new_epoch"] = "refuse"
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    callbacks: Sequence[Any] = ()
    profiler: str | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        check(
            self,
            folder=Rule(lambda path: bool(re.match(r"[^~$\s][^$]*$", path)), "a path, `~` and `$HOME` written out"),
            max_steps=whole(1),
            max_minutes=optional(number(0.0, above_minimum=True)),
            accumulate=whole(1),
            global_batch=optional(whole(1)),
            # Under 16-mixed the guard would judge scaled gradients, and the scaler end the run where it drops a step.
            precision=Rule(
                PRECISIONS.__contains__,
                "bf16-mixed or 32-true: 16-mixed would scale the loss behind the guard's back, bf16-true or 16-true "
                "would round the noise schedule",
            ),
            accelerator=choice(*ACCELERATORS),
            devices=whole(1),
            num_nodes=whole(1),
            strategy=Rule(
                STRATEGIES.__contains__,
                f"{', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}: guard, average and checkpoints need the trained "
                "weights whole on each device",
            ),
            threads=optional(whole(1)),
            log_every=whole(1),
            evaluate_every=whole(0),
            checkpoint_every=whole(1),
            keep_checkpoints=whole(1),
            keep_steps=some_of(whole(1), "steps from 1 up"),
            changed_order=choice("refuse", "new_epoch"),
            loggers=some_of(choice("tensorboard", "wandb"), "a list of tensorboard and wandb"),
            profiler=optional(choice("simple", "advanced", "pytorch")),
            deterministic=FLAG,
        )
        if self.global_batch is not None and self.accumulate != 1:
            raise ValueError(
                f"`accumulate`={self.accumulate} must be left out beside `global_batch`={self.global_batch}, which "
                "decides it. Leave one of them out."
            )

    @property
    def zero_stage(self) -> int:
        """Stage of DeepSpeed's ZeRO: 1 or 2; 0 for other strategies."""
        return ZERO_STAGES.get(self.strategy, 0)

    def unreached_steps(self, optimizer: OptimizerSettings, adversary_start: int | None = None) -> Iterator[str]:
        """Sentences on what lies beyond the last step, as in a short trial of a long plan, or by mistake.

        Args:
            optimizer: Its learning rate changes at steps.
            adversary_start: Step at which a discriminator begins to count, where there is one.

        Raises:
            ValueError: DeepSpeed does not know the optimizer.
        """
        if self.zero_stage and optimizer.name not in ("adamw", "torch.optim.AdamW"):
            raise ValueError(
                f"`run.strategy`={self.strategy} must be auto or ddp with `optimizer.name`={optimizer.name}: DeepSpeed "
                "shares out AdamW's state alone."
            )
        if optimizer.warmup_steps > self.max_steps:
            yield (
                f"`warmup_steps`={optimizer.warmup_steps} are more than `run.max_steps`={self.max_steps}: the rate "
                "will not rise to `lr`"
            )
        # The rate of a milestone begins with the step after it; a checkpoint is written at the end of its step.
        for name, steps, last in (
            ("milestones", optimizer.milestones, self.max_steps - 1),
            ("run.keep_steps", self.keep_steps, self.max_steps),
            ("adversarial.start_step", () if adversary_start is None else (adversary_start,), self.max_steps - 1),
        ):
            late = [step for step in steps if step > last]
            if late:
                yield (
                    f"`{name}`={late} will not be reached: `run.max_steps`={self.max_steps}, the last that counts is "
                    f"{last}"
                )

    def check_installed(self) -> None:
        """Refuse what cannot be had here; a plan may still be made.

        Raises:
            ValueError: A GPU is asked for, but there is none; or DeepSpeed or a logger, but it is not installed.
        """
        for name in self.loggers:
            if find_spec(name) is None:
                raise ValueError(f"`loggers`={name} has no package here to work with. Install it (pip install {name}).")
        if self.accelerator in ("gpu", "cuda", "mps") and not _has_gpu(self.accelerator):
            raise ValueError(
                f"`accelerator`={self.accelerator} does not exist on this machine: torch finds no such device. Use "
                "--run.accelerator cpu for a trial, and --run.precision 32-true where the CPU is slow in bfloat16."
            )
        if self.zero_stage and find_spec("deepspeed") is None:
            raise ValueError(
                f"`strategy`={self.strategy} has no DeepSpeed here to work with. Install it (pip install "
                "'seecoder[deepspeed]'), or use ddp."
            )

    def micro_batches(self, batch_size: int) -> int:
        """Micro-batches of each optimizer step.

        Args:
            batch_size: Samples of one micro-batch of one process.

        Raises:
            ValueError: `global_batch` cannot be made of whole micro-batches.
        """
        if self.global_batch is None:
            return self.accumulate
        at_once = batch_size * self.devices * self.num_nodes
        if self.global_batch % at_once:
            raise ValueError(
                f"`global_batch`={self.global_batch} must be a multiple of {at_once}, the samples at a time "
                f"({self.num_nodes} nodes x {self.devices} devices x {batch_size}). Change data.init_args.batch_size."
            )
        return self.global_batch // at_once


def _has_gpu(accelerator: str) -> bool:
    """Whether torch sees a device of this kind."""
    import torch

    return (accelerator != "mps" and torch.cuda.is_available()) or (
        accelerator != "cuda" and torch.backends.mps.is_available()
    )

"""DeepSpeed's ZeRO, stages 1 and 2, as a way to train that leaves everything else as it is under DDP.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020), section 5: each
process keeps AdamW's state of one part of the trained weights (stage 1), and the gradients of that part alone
(stage 2). Weights stay whole, so averaging, evaluation and export do not differ.

What DeepSpeed and Lightning would do by themselves, and what happens here:

- "bf16-mixed" would round all parameters, frozen ones and pictures included, to bfloat16. Here it is what it is under
  DDP: autocast over float32 weights, and gradients are exchanged in float32. Noise schedule, losses and evaluations are
  computed exactly as under DDP.
- A model with frozen parts in 16 bits would be refused. Here DeepSpeed never sees frozen parts.
- Checkpoints would be folders with one file for each process, written in place. Here AdamW's state is gathered and the
  first process writes the one file that DDP would write; it can be continued by any number of processes and by DDP.
- Gradients would be clipped, and non-finite ones skipped, by DeepSpeed's own rules. Here `train.run.guards` decides.
- An accumulated loss would be divided twice by the number of micro-batches. Here Lightning alone divides.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, distributed, nn

from seecoder.weights.safetensors_files import WeightsError
from train.run.guards import Gradients
from train.settings import RunSettings

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names
BUCKET = 25_000_000  # elements that are exchanged at once; buffers of this size exist during a step


def make_strategy(run: RunSettings, batch_size: int) -> tuple[DeepSpeedStrategy, DeepSpeedPrecision]:
    """Strategy and precision of a run.

    Args:
        run: With strategy "deepspeed_stage_1" or "deepspeed_stage_2".
        batch_size: Samples of one micro-batch of one process.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch_size,
        "zero_optimization": {
            "stage": run.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
    }
    if run.precision == "bf16-mixed":  # an autocast around DeepSpeed would be switched off by it
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return ZeroStrategy(config=config), ZeroPrecision("cuda")


class ZeroGradients(Gradients):
    """A process's part of the gradients, averaged over processes.

    Args:
        optimizer: DeepSpeed's, between the backward pass and its step.
    """

    def __init__(self, optimizer: Any) -> None:
        self.weights = []
        self.tensors = [tensor for group in optimizer.averaged_gradients.values() for tensor in group]

    def norm(self) -> Tensor:
        """Norm of the parts of all processes."""
        squares = super().norm().square()
        distributed.all_reduce(squares)
        return squares.sqrt()

    def drop(self) -> None:
        """Make DeepSpeed throw the step away, which it does for gradients that are no numbers."""
        torch._foreach_mul_(self.tensors, float("nan"))


class ZeroPrecision(DeepSpeedPrecision):
    """Float32 weights and batches as they come; the strategy's configuration says whether there is autocast.

    Args:
        device: Type of the device.
    """

    # Frozen parts stay in the dtype that the stage holds them in, and batches as they come.
    convert_module = Precision.convert_module
    convert_input = Precision.convert_input

    def __init__(self, device: str) -> None:
        super().__init__("32-true")
        self.device = device

    def forward_context(self) -> Any:
        """Let DeepSpeed's autocast keep no casts, like Lightning's: gradients of weights used twice add in float32."""
        return torch.autocast(self.device, enabled=False, cache_enabled=False)

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Exchange gradients after the last micro-batch of a step (in stage 2 after each)."""
        engine = model.trainer.model
        engine.set_gradient_accumulation_boundary(not model.trainer.fit_loop._should_accumulate())
        engine.backward(tensor, *args, **kwargs)


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO with DDP's checkpoints."""

    # The weights are whole, so they are saved and loaded, before DeepSpeed takes its parts, as by any other strategy.
    save_checkpoint = Strategy.save_checkpoint
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict
    restore_checkpoint_after_setup: Any = Strategy.restore_checkpoint_after_setup
    lightning_restore_optimizer: Any = Strategy.lightning_restore_optimizer  # by `load_optimizer_state_dict`
    handles_gradient_accumulation: Any = Strategy.handles_gradient_accumulation  # the stage's steps are whole ones
    block_backward_sync: Any = nullcontext  # `ZeroPrecision.backward` exchanges; stage 2 knows no other way

    def _format_batch_size_and_grad_accum_config(self) -> None:
        super()._format_batch_size_and_grad_accum_config()
        config: Any = self.config
        config["gradient_accumulation_steps"] = 1  # Lightning accumulates

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        model.to(self.root_device)
        for _, weight in model.trained_parameters():  # DeepSpeed fails at the strides of channels-last
            weight.data = weight.data.flatten().view(weight.shape)
        with _hidden(model, model.frozen_names):
            return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def gradients(self) -> ZeroGradients:
        """This process's part of the gradients, between the backward pass and the optimizer's step."""
        return ZeroGradients(self.optimizers[0])

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """AdamW's state as `torch.optim.AdamW` gives it: gathered from all processes, kept by the first."""
        from deepspeed.utils import safe_get_full_optimizer_state

        zero: Any = self.optimizers[0]
        weights, flat = zero.bit16_groups[0], zero.single_partition_of_fp32_groups[0]
        states: dict[int, dict[str, Tensor]] = {}
        if "step" in zero.state.get(flat, {}):  # absent before the first step
            for index, weight in enumerate(weights):
                whole: dict[str, Any] = {name: safe_get_full_optimizer_state(weight, name) for name in MOMENTS}
                if self.is_global_zero:
                    step = zero.state[flat]["step"].detach().float().cpu().reshape(())
                    states[index] = {"step": step.clone(), **{name: value.cpu() for name, value in whole.items()}}
        (group,) = zero.param_groups
        settings = {name: value for name, value in group.items() if name != "params"}
        return {"state": states, "param_groups": [{**settings, "params": list(range(len(weights)))}]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of AdamW's state, from a checkpoint of any strategy and number of processes.

        Raises:
            WeightsError: The checkpoint's steps differ between weights.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        (saved,) = checkpoint["optimizer_states"]
        states: Mapping[int, Mapping[str, Tensor]] = saved["state"]
        if not states:
            return
        zero: Any = self.optimizers[0]
        weights, flat = zero.bit16_groups[0], zero.single_partition_of_fp32_groups[0]
        steps = {float(state["step"]) for state in states.values()}
        if len(steps) > 1 or len(states) != len(weights):
            raise WeightsError(
                f"AdamW's state of {len(states)} weights with {len(steps)} different counts of steps cannot be shared "
                f"out by DeepSpeed, which counts once for all {len(weights)}; continue with ddp."
            )
        step = torch.tensor(steps.pop(), dtype=torch.float32, device=flat.device)
        zero.state[flat].update(step=step, **{name: torch.zeros_like(flat) for name in MOMENTS})
        zero._lazy_init_hp_params_optimizer_state()
        for index, weight in enumerate(weights):
            for name in MOMENTS:
                safe_set_full_optimizer_state(weight, states[index][name].to(weight.device), name)


@contextmanager
def _hidden(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Take submodules out for a while; they come back to the same places."""
    with ExitStack() as stack:
        for name in names:
            parent, _, child = name.rpartition(".")
            modules = model.get_submodule(parent)._modules
            stack.callback(modules.update, {child: modules[child]})
            modules[child] = nn.Module()
        yield

"""A SeeCoder training step as a beginner would write it, and every lever that makes it faster.

The naive loop is correct and common: everything in float32 (under autocast on a GPU), pictures encoded in every step,
gradients also for the UNet's frozen weights, attention that writes its weights out, memory in channels-first order,
reading and computing by turns, a small batch. Each lever changes one of these; all run the same `SeeCoderStage`.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.shards.caching.cache_source import WithCaches
from data.shards.caching.moments import MEAN, STD, MomentsSource
from data.shards.plan import Plan
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from scripts.benchmarks.timed_network import median_seconds, synchronise
from seecoder.base_model.known_bases import base_sizes
from train.estimate.costs import count_costs
from train.run.cpu_attention import float32_attention
from train.settings import OptimizerSettings
from train.stages.seecoder import SeeCoderStage


def _lever(name: str) -> Any:
    """A lever that is off in the naive loop; `name` stands in the table."""
    return field(default=False, metadata={"name": name})


@dataclass(frozen=True)
class Levers:
    """What differs from the naive loop."""

    no_weight_gradients: bool = _lever("no weight gradients in the UNet")
    cached: bool = _lever("cached latents")
    half_frozen: bool = _lever("frozen parts held in bfloat16")
    autocast: bool = _lever("autocast of the trained parts to bfloat16")
    fused_attention: bool = _lever("fused attention (SDPA; on a CPU in float32)")
    channels_last: bool = _lever("channels-last")
    compiled: bool = _lever("torch.compile of UNet and decoder")
    large_batch: bool = _lever("larger micro-batch")
    loading_ahead: bool = _lever("loading ahead, uint8 transfer")
    checkpointed: bool = _lever("decoder checkpointing")


NAMES = {lever.name: lever.metadata["name"] for lever in fields(Levers)}
NAIVE, ALL = "naive loop", "all levers for speed"
FOR_MEMORY = {"checkpointed"}  # saves memory and costs time: not among "all levers"


@dataclass(frozen=True)
class Workload:
    """What is trained, on what.

    Attributes:
        name: For the table.
        base: Folder of the base.
        encoder: Arguments of `SeeCoder`.
        size: Side of the pictures.
        batches: Small and large micro-batch.
        raw: Shards of pictures.
        cached: The same with moments.
        device: Where it runs.
        workers: Reading processes when loading ahead.
    """

    name: str
    base: Path
    encoder: Mapping[str, Any]
    size: int
    batches: tuple[int, int]
    raw: Path
    cached: Path
    device: torch.device
    workers: int

    @property
    def naive(self) -> Levers:
        """Where levers start from: on a GPU nobody trains without autocast."""
        return Levers(autocast=self.device.type == "cuda")

    def variants(self) -> dict[str, Levers]:
        """The naive loop, each lever alone, and all that are for speed."""
        naive = self.naive
        names = [name for name in NAMES if not getattr(naive, name)]
        alone = {NAMES[name]: replace(naive, **{name: True}) for name in names}
        fast = [name for name in names if name not in FOR_MEMORY]
        return {NAIVE: naive} | alone | {ALL: replace(naive, **dict.fromkeys(fast, True))}

    def flops(self, levers: Levers) -> int:
        """Operations that one picture needs; what a loop does beyond that counts for nothing."""
        sizes = base_sizes(str(self.base))
        assert sizes is not None  # it is a folder
        cached = {"autoencoder": float(levers.cached)}
        return count_costs({"encoder": self.encoder}, sizes, self.size, cached=cached).total_flops


class Loop:
    """A training with some levers.

    Args:
        work: What is trained.
        levers: How.
    """

    def __init__(self, work: Workload, levers: Levers) -> None:
        self.work, self.levers = work, levers
        self.batch_size = work.batches[levers.large_batch]
        self.stage = self._make_stage()
        self.optimizer: Any = self.stage.configure_optimizers()
        if not levers.no_weight_gradients:  # after the optimizer was made: nobody uses them
            self.stage.unet.requires_grad_(True)
        self.loader = self._make_loader()
        self.batches = self._endless()
        self.first_loss: float | None = None

    def _make_stage(self) -> SeeCoderStage:
        levers, work = self.levers, self.work
        stage = SeeCoderStage(
            OptimizerSettings(lr=1e-4),
            base=str(work.base),
            encoder=dict(work.encoder),
            frozen_dtype="bfloat16" if levers.half_frozen else "float32",
            gradient_checkpointing=("encoder",) if levers.checkpointed else (),
            compiled=("unet", "decoder") if levers.compiled else (),
        )
        if not levers.channels_last:
            for module, entrance in ((stage.unet, stage.unet), (stage.vae, stage.vae.encoder)):
                module.to(memory_format=torch.contiguous_format)
                entrance.register_forward_pre_hook(
                    lambda _, args: tuple(part.contiguous() if isinstance(part, Tensor) else part for part in args)
                )
        stage.train()
        return stage.to(work.device)

    def _make_loader(self) -> ShardLoader:
        work, ahead = self.work, self.levers.loading_ahead
        sources = (self.stage.moments_source(work.size),) if self.levers.cached else ()
        workers = work.workers if ahead else 0
        shards = open_shards(work.cached if self.levers.cached else work.raw)
        return ShardLoader(
            shards,
            Plan(shards.counts),
            WithCaches(SquareImage(work.size), sources),
            self.batch_size,
            rank=0,
            world_size=1,
            batches=1 << 20,
            num_workers=workers,
            pin_memory=ahead and work.device.type == "cuda",
        )

    def _endless(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            keys = torch.stack([batch["epoch"], batch["sample_id"]], dim=1)
            pixels = batch["pixels"] if self.levers.loading_ahead else batch["pixels"].float()
            columns = {MEAN: batch[MEAN], STD: batch[STD]} if all(batch.get(MomentsSource.flag, [False])) else {}
            moved = {
                name: value.to(self.work.device, non_blocking=self.levers.loading_ahead)
                for name, value in {"pixels": pixels, **columns}.items()
            }
            yield moved | {"keys": keys}

    def turn(self, steps: int) -> float:
        """Train a few steps, and give pictures a second; waiting for input counts, as it does in a training."""
        synchronise(self.work.device)
        start = time.perf_counter()
        for _ in range(steps):
            self._step(next(self.batches))
        synchronise(self.work.device)
        return steps * self.batch_size / (time.perf_counter() - start)

    def _step(self, batch: dict[str, Any]) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.work.device.type, torch.bfloat16, enabled=self.levers.autocast))
            if not self.levers.fused_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            elif self.work.device.type == "cpu":
                stack.enter_context(float32_attention())
            loss = self.stage.loss(batch)
            loss.backward()
        if self.first_loss is None:
            self.first_loss = float(loss.detach())
        self.optimizer.step()
        self.stage.zero_grad(set_to_none=True)

    def memory(self) -> float:
        """Bytes that the backward pass of one picture needs to be kept, on a CPU."""
        with kept_for_backward({weight.data_ptr() for weight in self.stage.parameters()}) as total:
            self._step(next(self.batches))
        return sum(total.values()) / self.batch_size

    def close(self) -> None:
        """Stop reading processes and let go of the device's memory."""
        self.loader.close()
        del self.stage, self.optimizer, self.batches
        if self.work.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def kept_for_backward(weights: set[int]) -> Iterator[dict[int, int]]:
    """Note the bytes of all that autograd keeps, by storage.

    Args:
        weights: Addresses that do not count.

    Yields:
        Bytes by address; complete when the forward pass is over.
    """
    total: dict[int, int] = {}
    alive: list[Tensor] = []  # no address may be used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in total:
            total[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield total


def measured_peak(device: torch.device, side: int = 1536) -> float:
    """Most operations a second of a large matrix product here, over float32 and bfloat16.

    Args:
        device: Where it is measured.
        side: Of the matrices.
    """
    best = math.inf
    for dtype in (torch.float32, torch.bfloat16):
        one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        best = min(best, median_seconds(lambda one=one, two=two: one @ two, device, 6))
    return 2 * side**3 / best

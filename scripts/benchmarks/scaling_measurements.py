"""What `scaling_law.py` measures, in one process or several: steps and their parts, all-reduce, reading, saving.

Run as a program it is one of those processes: `scaling_measurements.py JOB RANK`, where JOB is a JSON file; rank 0
writes what it found beside it.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.shards import index
from data.shards.caching.maps import column
from data.shards.caching.moments import MEAN, STD
from train.run.checkpoints import AtomicCheckpointIO
from train.run.cpu_attention import float32_attention
from train.settings import EmaSettings, OptimizerSettings
from train.stages.ema import Ema
from train.stages.seecoder import SeeCoderStage

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "world_seecoder.yaml"
OPTIMIZER = "optimizer and average"


def make_stage(options: dict[str, Any]) -> SeeCoderStage:
    """Make the stage that the world's configuration describes.

    Args:
        options: Its `init_args`.
    """
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options["optimizer"].items()
    }
    return SeeCoderStage(
        OptimizerSettings(**settings),
        base=str(ROOT / options["base"]),
        encoder=options["encoder"],
        backbone_weights=str(ROOT / options["backbone_weights"]),
        frozen_dtype=options.get("frozen_dtype", "float32"),
        min_snr_gamma=options.get("min_snr_gamma"),
        timestep_sampling=options.get("timestep_sampling", "uniform"),
        ema=EmaSettings(**options["ema"]),
    )


class _Loss(nn.Module):
    """What DistributedDataParallel wraps."""

    def __init__(self, stage: SeeCoderStage):
        super().__init__()
        self.stage = stage

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.stage.loss(batch)


class Bench:
    """A training of the world in this process, without Lightning; pictures are noise, which costs the same.

    Args:
        config: The whole configuration.
    """

    def __init__(self, config: dict[str, Any]):
        self.size = config["data"]["init_args"]["image_size"]
        self.mixed = config["run"]["precision"] != "32-true"
        self.stage = make_stage(config["stage"]["init_args"])
        self.stage.train()
        self.optimizer: Any = self.stage.configure_optimizers()
        self.weights = [weight for _, weight in self.stage.trained_parameters()]
        self.ema = Ema(self.stage.trained_parameters(), EmaSettings(**config["stage"]["init_args"]["ema"]))
        self.alone: nn.Module = _Loss(self.stage)
        self.together = DistributedDataParallel(self.alone) if dist.is_initialized() else self.alone

    def batch(self, size: int) -> dict[str, Any]:
        """Noise, and keys."""
        pixels = torch.randint(0, 256, (size, 3, self.size, self.size), dtype=torch.uint8)
        return {"pixels": pixels, "keys": torch.stack([torch.zeros(size), torch.arange(size)], dim=1).long()}

    def whole(self, size: int, exchanging: bool = False) -> float:
        """Seconds of a step.

        Args:
            size: Pictures of the micro-batch.
            exchanging: With all processes' gradients.
        """
        batch, model = self.batch(size), self.together if exchanging else self.alone
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed), float32_attention():
            loss = model(batch)
        loss.backward()
        self._update()
        return time.perf_counter() - start

    def parts(self, size: int) -> dict[str, float]:
        """Seconds of a step by part, under the names of `train.estimate.costs`."""
        batch, stage, marks = self.batch(size), self.stage, [("", time.perf_counter())]

        def mark(name: str) -> None:
            marks.append((name, time.perf_counter()))

        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed), float32_attention():
            batch[MEAN], batch[STD] = stage.moments(batch)
            mark("autoencoder")
            maps = stage.encoder.compute_maps(batch["pixels"].float() / 255)
            batch |= {column(level): values for level, values in enumerate(maps)}
            mark("backbone")
            context, pooled = stage.encode(batch, batch["keys"])
            mark("decoder and queries forward")
            loss = stage.errors(batch, batch["keys"], context, pooled)[0].mean()
            mark("unet forward")
        (gradient,) = torch.autograd.grad(loss, [context])
        mark("unet backward")
        context.backward(gradient)
        mark("decoder and queries backward")
        self._update()
        mark(OPTIMIZER)
        return {name: at - before for (_, before), (name, at) in pairwise(marks)}

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.ema.update()
        self.stage.zero_grad(set_to_none=True)


def measure_steps(config: dict[str, Any], sizes: Iterable[int], rounds: int) -> dict[str, Any]:
    """Median seconds of a step by micro-batch, for whole steps and for parts; in groups also with exchange.

    Sizes take turns, so that whatever else the machine does falls on all alike.
    """
    bench, sizes = Bench(config), list(sizes)
    kinds = ("alone", "together") if dist.is_initialized() else ("alone", "parts")
    found: dict[str, dict[int, list[Any]]] = {kind: {size: [] for size in sizes} for kind in kinds}
    processor, start = time.process_time(), time.perf_counter()
    for number in range(rounds + 1):
        for size in sizes[:: -1 if number % 2 else 1]:
            for kind in kinds:
                value = bench.parts(size) if kind == "parts" else bench.whole(size, kind == "together")
                if number:  # the first round warms up
                    found[kind][size].append(value)
    busy = (time.process_time() - processor) / (time.perf_counter() - start)
    result: dict[str, Any] = {
        "gradient_bytes": sum(4 * weight.numel() for weight in bench.weights),
        "processor": busy,
        "sizes": sizes,
        **{kind: [statistics.median(found[kind][size]) for size in sizes] for kind in kinds if kind != "parts"},
    }
    if "parts" in found:
        names = found["parts"][sizes[0]][0]
        result["parts"] = {
            name: [statistics.median(row[name] for row in found["parts"][size]) for size in sizes] for name in names
        }
    return result


def measure_exchange(sizes: Iterable[int], rounds: int) -> dict[str, list[float]]:
    """Median seconds of an all-reduce of float32, by bytes."""
    found: dict[str, list[float]] = {"bytes": [], "seconds": []}
    for size in sizes:
        values, times = torch.ones(size // 4), []
        for number in range(rounds + 1):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            if number:
                times.append(time.perf_counter() - start)
            values.fill_(1.0)
        found["bytes"].append(4 * len(values))
        found["seconds"].append(statistics.median(times))
    return found


def measure_disk(folder: Path, rounds: int, megabytes: int = 64, samples: int = 1000) -> dict[str, float]:
    """Milliseconds to read the index of a shard, and GB/s of writing a checkpoint."""
    shard, text = folder / "00000.tar", json.dumps({"x": 0})
    shard.write_text(text)
    rows = [(f"{number:09d}", {"jpg": (1024 * number, 100_000)}) for number in range(samples)]
    digest = hashlib.sha256(text.encode()).hexdigest()
    index.write_index(shard, index.ShardIndex(rows), digest)
    weights, writer = {"weights": torch.rand(megabytes * 250_000)}, AtomicCheckpointIO()
    opening, saving = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        if len(index.load(shard, (), digest).samples) != samples:
            raise RuntimeError("The index that was written is not the one that was read.")
        opening.append(time.perf_counter() - start)
        start = time.perf_counter()
        writer.save_checkpoint(weights, folder / "step-00000001.ckpt")
        if writer.error is not None:
            raise writer.error
        saving.append(time.perf_counter() - start)
    size = index.index_path(shard).stat().st_size
    return {
        "opening_ms": 1000 * statistics.median(opening),
        "index_bytes": size / samples,
        "checkpoint_gb": megabytes / 1000 / statistics.median(saving),
    }


def run_group(processes: int, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in processes of their own, one thread each, and give what rank 0 found.

    Args:
        processes: How many.
        job: "config", "sizes", "rounds" for `measure_steps`; "bytes" and "exchanges" for `measure_exchange`.

    Raises:
        RuntimeError: One of them failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, out = Path(folder, "job.json"), Path(folder, "found.json")
        path.write_text(json.dumps({**job, "processes": processes, "folder": folder}))
        group = []
        for rank in range(processes):
            group.append(subprocess.Popen([sys.executable, __file__, str(path), str(rank)], env=environment))
            stack.callback(_end, group[-1])
        while any(process.poll() is None for process in group):
            if any(process.poll() for process in group):
                break  # the others would wait for it
            time.sleep(0.05)
        if any(process.poll() != 0 for process in group):
            raise RuntimeError(f"One of {processes} processes failed; what it said stands above.")
        return json.loads(out.read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def main() -> None:
    job, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    found: dict[str, Any] = {}
    if job["processes"] > 1:
        dist.init_process_group("gloo", f"file://{job['folder']}/meeting", rank=rank, world_size=job["processes"])
    if job.get("bytes"):
        found["exchange"] = measure_exchange(job["bytes"], job["exchanges"])
    if job.get("sizes"):
        found["steps"] = measure_steps(yaml.safe_load(CONFIG.read_text()), job["sizes"], job["rounds"])
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        Path(job["folder"], "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""Laws of how long a training takes on many GPUs, and of what holds it up.

All of it is arithmetic on counted costs. Constants are published, measured by us, or guessed, as each law says.

1. **Micro-batch**: fixed + batch * picture seconds. A picture takes its counted operations at 28 % of the GPU's peak,
   which is what published trainings of this kind reached on A100s. The fixed part (launches, layers too small to fill a
   GPU) is the weakest assumption of all: NVIDIA's ControlNet on an A100 trains 21.52 pictures a second in micro-batches
   of 8 and 27.20 in those of 32 (NeMo's performance page), which is 0.104 s and 0.0335 s a picture.
2. **Exchange** of gradients by rings within machines, then between them. Speed and latency within a machine and latency
   between machines are those of NCCL's own model for A100s (tuning.cc); the network has 200 Gbit/s for each GPU.
3. **Hiding**: the exchange runs behind the rest of the last backward pass. What is longer is waited for, and so is the
   last bucket ("PyTorch Distributed", Li et al., VLDB 2020, section 3.2.3).
4. **Rank 0** evaluates, draws previews and writes checkpoints, at 0.5 GB/s (a guess), while the others wait.
5. **More images a step** are another training. For Adam its learning rate rises by the square root of their factor
   (Malladi et al., arXiv 2205.10287), for others by the factor (Goyal et al., arXiv 1706.02677); nobody here tried it.

A cause breaks a run when it costs more than a tenth of its time; `fit` refuses more readers than shards. Left out are
slow machines, which all others wait for; reading, because a core decodes 297 to 339 JPEG of 512 pixels a second
(measured) and a GPU trains on tens; the storage (100 kB a picture, from each machine that fetches shards over a
network); failures, one in some 50,000 hours of a GPU (Llama 3 had 419 in 54 days on 16,384: arXiv 2407.21783, section
3.3.4), each of which costs half the time between two checkpoints and the restart.

How far to trust it: laws 1 to 3 predicted the speed of two CPU processes from that of one within 4 % (gloo, 1.5 GB/s,
micro-batches of 4, 16 and 48). Laws 2 and 3 put the published speeds of Stable Diffusion 2 on 128 A100s, relative to
those on 8 (mosaicml/diffusion), between nothing hidden and all of the backward pass hiding the exchange.
"""

import math

from train.estimate.hardware import CountedRun

TOLERATED = 0.1  # fraction of the time that one cause may cost
BUCKET = 25 * 2**20  # bytes that DDP exchanges at a time (torch's `bucket_cap_mb`)
MACHINE_SPEED, MACHINE_LATENCY, NETWORK_LATENCY = 235e9, 3.4e-6, 9.6e-6  # bytes a second; seconds of a ring's step
CHECKPOINT_SPEED = 0.5e9  # bytes a second


def predict(counted: CountedRun, gpus: int, batch: int, accumulate: int = 1) -> tuple[float, float, str]:
    """Put the laws together.

    Args:
        counted: What is trained, and on what.
        gpus: How many.
        batch: Pictures of a micro-batch of one GPU.
        accumulate: Micro-batches of a step; the backward pass of the last one may hide the exchange.

    Returns:
        Seconds of a step, without what rank 0 does alone; images a second of all GPUs, everything included; and in
        words what costs most of the time, and whether that is more than `TOLERATED`.
    """
    run, costs, speed = counted.run, counted.costs, counted.hardware.speed(counted.run)
    images, size, alone = gpus * batch * accumulate, 4 * costs.trained, rank_zero_seconds(counted)
    fixed = accumulate * counted.hardware.fixed_seconds
    machine = run.devices if run.devices * run.num_nodes > 1 else 8  # GPUs, where the run has only one
    exchange = exchange_seconds(size, gpus, machine, 1e9 * counted.hardware.network_gb)
    exposed = exposed_seconds(exchange, batch * costs.flops["decoder and queries backward"] / speed, buckets(size))
    step = fixed + accumulate * batch * costs.total_flops / speed + exposed
    lost = {
        "fixed cost of micro-batches": fixed / step,
        "exchange of gradients": exposed / step,
        "waiting for rank 0": alone / (step + alone),
    }
    cause = max(lost, key=lambda name: lost[name])
    breaks = f"{'' if lost[cause] > TOLERATED else 'nothing; next: '}{cause}, {lost[cause]:.1%}"
    readers, shards = gpus * max(1, counted.source.get("num_workers", 0)), counted.shards
    if shards is not None and readers > len(shards.counts):
        breaks = f"refused: {readers:,} readers for {len(shards.counts):,} shards"
    return step, images / (step + alone), breaks


def exchange_seconds(size: float, gpus: int, machine: int, network: float) -> float:
    """All-reduce of `size` bytes: a ring in each machine, then rings between GPUs of the same place in each.

    A ring of n takes 2 (n - 1) steps, in each of which a rank sends 1 / n of the bytes (Patarasu and Yuan, "Bandwidth
    optimal all-reduce algorithms for clusters of workstations", 2009, section 3); between machines `network` a second.
    """
    local, machines = min(gpus, machine), -(-gpus // machine)
    within = (local - 1) * (size / local / MACHINE_SPEED + buckets(size) * MACHINE_LATENCY)
    between = (machines - 1) * (size / local / machines / network + buckets(size) * NETWORK_LATENCY)
    return 2 * (within + between)


def buckets(size: float) -> int:
    """Pieces in which DDP exchanges gradients of `size` bytes."""
    return max(1, math.ceil(size / BUCKET))


def exposed_seconds(exchange: float, hideable: float, pieces: int) -> float:
    """Part of the exchange that the backward pass cannot hide; the last piece never can."""
    return max(exchange / pieces, exchange - hideable)


def rank_zero_seconds(counted: CountedRun) -> float:
    """What rank 0 does alone (evaluation, previews, checkpoints), on the mean of all steps."""
    run, flops, preview = counted.run, counted.costs.flops, counted.options.get("preview") or {}
    # Held-out pictures are encoded whatever is cached, and denoised with their own, a shuffled and no context.
    passes = flops["backbone"] + flops["decoder and queries forward"] + flops["autoencoder"] + 3 * flops["unet forward"]
    evaluation = counted.source.get("held_out", 0) * passes / (run.evaluate_every or run.checkpoint_every)
    guided = 1 if preview.get("guidance_scale", 1) == 1 else 2
    sheet = guided * math.prod(preview.get(name, 0) for name in ("pictures", "rows", "steps")) * flops["unet forward"]
    saving = counted.checkpoint_bytes / CHECKPOINT_SPEED / run.checkpoint_every
    return (evaluation + sheet / run.checkpoint_every) / counted.hardware.speed(run) + saving


def split_batch(images: int, gpus: int, largest: int) -> tuple[int, int] | None:
    """Size (at most `largest`) and number of a GPU's micro-batches in a step; None where there is no equal split."""
    each, rest = divmod(images, gpus)
    batch = max((size for size in range(1, min(each, largest) + 1) if each % size == 0), default=0)
    return None if rest or not batch else (batch, each // batch)

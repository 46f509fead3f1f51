"""Laws of how a training's parts grow with batch and number of GPUs: one function an equation, in seconds and bytes.

`train.estimate.prediction` puts them together for clusters that nobody has measured.
"""

import math
from collections.abc import Sequence

from train.estimate.hardware import Cluster

BUCKET = 25 * 2**20  # bytes that DDP exchanges at a time (torch's `bucket_cap_mb`)
INDEX_BYTES = 50  # of a shard's index for each sample


def fit_line(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line with the least squares of relative errors, so that small values count, too.

    Raises:
        ValueError: Fewer than two different places, or a value that is not positive.
    """
    if len(set(places)) < 2 or min(values) <= 0:
        raise ValueError(f"A line needs two different places and positive values; there are {places}, {values}.")
    weights = [value**-2 for value in values]
    total = math.fsum(weights)
    place = math.fsum(w * x for w, x in zip(weights, places, strict=True)) / total
    value = math.fsum(w * y for w, y in zip(weights, values, strict=True)) / total
    rows = list(zip(weights, places, values, strict=True))
    slope = math.fsum(w * (x - place) * (y - value) for w, x, y in rows) / math.fsum(
        w * (x - place) ** 2 for w, x, _ in rows
    )
    return value - slope * place, slope


def micro_batch_seconds(fixed: float, each: float, batch: int) -> float:
    """Forward and backward pass of a micro-batch: fixed + each * batch, fitted to measured times."""
    return fixed + each * batch


def ring_seconds(size: float, ranks: int, bandwidth: float, latency: float, calls: int = 1) -> float:
    """A ring's all-reduce: 2 (n - 1) steps, in each of which every rank sends 1 / n of the bytes.

    "Bandwidth optimal all-reduce algorithms for clusters of workstations", Patarasu and Yuan, 2009, section 3.

    Args:
        size: Bytes, over all calls.
        ranks: n.
        bandwidth: Bytes a second that a rank sends while it receives as many.
        latency: Seconds of a step without any bytes.
        calls: Into how many pieces the bytes are cut.
    """
    return 2 * (ranks - 1) * (size / ranks / bandwidth + calls * latency)


def exchange_seconds(size: float, gpus: int, cluster: Cluster) -> float:
    """All-reduce in buckets, the faster of two ways: NCCL, too, chooses by a model of this form (tuning.cc).

    One ring through all GPUs, with all ports of a machine in use; or a ring within each machine around rings between
    GPUs of the same place, which have 1 / gpus_per_node of the bytes each.
    """
    local, nodes, calls = min(gpus, cluster.gpus_per_node), machines(gpus, cluster), buckets(size)
    within, between = 1e9 * cluster.node_gb, 1e9 * cluster.network_gb
    near, far = 1e-6 * cluster.node_latency_us, 1e-6 * cluster.network_latency_us
    if nodes == 1:
        return ring_seconds(size, gpus, within, near, calls)
    flat = ring_seconds(size, gpus, min(within, local * between), near, calls) + 2 * (nodes - 1) * calls * (far - near)
    nested = ring_seconds(size, local, within, near, calls) + ring_seconds(size / local, nodes, between, far, calls)
    return min(flat, nested)


def machines(gpus: int, cluster: Cluster) -> int:
    """How many machines these GPUs are."""
    return -(-gpus // cluster.gpus_per_node)


def buckets(size: float) -> int:
    """Pieces in which DDP exchanges gradients."""
    return max(1, math.ceil(size / BUCKET))


def exposed_seconds(exchange: float, hideable: float, pieces: int) -> float:
    """Part of the exchange that the backward pass cannot hide; the last piece never can.

    "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", Li et al., VLDB 2020, section 3.2.3.
    """
    return max(exchange / pieces, exchange - hideable)


def split_batch(pictures: int, gpus: int, most: int) -> tuple[int, int] | None:
    """Size and number of a GPU's micro-batches in a step of `pictures`; None where there is no equal split.

    Args:
        pictures: Of a step, over all GPUs.
        gpus: How many.
        most: Largest micro-batch.
    """
    each, rest = divmod(pictures, gpus)
    if rest or not each:
        return None
    batch = max(size for size in range(1, min(each, most) + 1) if each % size == 0)
    return batch, each // batch


def openings(readers: int, batch: int, samples_per_shard: int, window: int) -> float:
    """Shards that are opened for a picture, at most.

    A reader opens each shard once an epoch (`data.shards.plan` has all read the same `window` shards at a time), and
    for one batch no more than the window has, or the batch has pictures.
    """
    return min(readers / samples_per_shard, min(window, batch) / batch)


def loader_rate(workers: int, opened: float, cluster: Cluster) -> float:
    """Pictures a second that the readers of one GPU deliver."""
    opening = 1e-6 * cluster.opening_ms * cluster.samples_per_shard  # 1e-3 s for a ms, 1e-3 for 1,000 samples
    return min(max(1, workers), cluster.cores_per_gpu) / (1 / cluster.decodes_per_core + opened * opening)


def storage_bytes(opened: float, copies: int, cluster: Cluster) -> float:
    """Bytes that the storage gives for a picture: the picture, once for each machine that fetches it, and indices."""
    return 1e3 * cluster.picture_kb * copies + opened * INDEX_BYTES * cluster.samples_per_shard


def best_interval(saving: float, between_failures: float) -> float:
    """Seconds between checkpoints at which least time is lost: sqrt(2 C M).

    "A first order approximation to the optimum checkpoint interval", Young, CACM 1974.
    """
    return math.sqrt(2 * saving * between_failures)


def lost_to_failures(interval: float, restart: float, between_failures: float) -> float:
    """Share of the time: half an interval is done again, and the restart."""
    return min(1.0, (interval / 2 + restart) / between_failures)

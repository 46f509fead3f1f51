"""Speed of a training on many GPUs, and what breaks first: the laws of `train.estimate.scaling`, put together.

All of it is arithmetic on counted costs and on what `Cluster` assumes. Left out: slow machines, which all others wait
for, and congestion between runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from train.estimate.hardware import Cluster
from train.estimate.scaling import (
    best_interval,
    buckets,
    exchange_seconds,
    exposed_seconds,
    loader_rate,
    lost_to_failures,
    machines,
    micro_batch_seconds,
    openings,
    storage_bytes,
)

TOLERATED = 0.1  # share of the time that one cause may cost before it counts as broken
SHARDS, FIXED, EXCHANGE, LOADER = "readers of shards", "fixed cost", "exchange", "loader"
STORAGE, RANK_ZERO, FAILURES = "storage", "waiting for rank 0", "failures"


@dataclass(frozen=True)
class Work:
    """What is trained, in numbers that do not depend on how many GPUs do it.

    Attributes:
        picture_seconds: What a picture adds to a micro-batch of one GPU.
        hideable: Share of it after the first gradients are there: the exchange may run meanwhile.
        gradient_bytes: Bytes of all gradients.
        checkpoint_bytes: Bytes of a checkpoint.
        checkpoint_every: Steps between two.
        rank_zero_seconds: What rank 0 does alone beside checkpoints (evaluation, previews), a mean step.
        workers: Reading processes of each training process.
        window: Shards that are mixed with each other.
        shards: Their number.
        is_fetched: Each machine fetches the shards that it reads.
    """

    picture_seconds: float
    hideable: float
    gradient_bytes: int
    checkpoint_bytes: int
    checkpoint_every: int
    rank_zero_seconds: float
    workers: int
    window: int
    shards: int
    is_fetched: bool = False


@dataclass(frozen=True)
class Limit:
    """One thing that can break.

    Attributes:
        name: What.
        used: How much of what it can bear is used; above 1 it is broken.
        lost: Share of the time that it costs; 1 if the run is refused.
        said: The numbers.
    """

    name: str
    used: float
    lost: float
    said: str

    @classmethod
    def of_time(cls, name: str, lost: float, said: str = "") -> "Limit":
        """Something that costs time on any number of GPUs, and may cost `TOLERATED`."""
        return cls(name, lost / TOLERATED, lost, f"{lost:.1%}{said}")

    @classmethod
    def of_speed(cls, name: str, used: float, said: str) -> "Limit":
        """Something that costs nothing while it is fast enough, and sets the speed when it is not."""
        return cls(name, used, max(0.0, 1 - 1 / used), said)


@dataclass(frozen=True)
class Prediction:
    """A training on some GPUs.

    Attributes:
        gpus: How many.
        batch: Pictures of a micro-batch of one GPU.
        accumulate: Micro-batches of a step.
        step_seconds: Of a step, without what rank 0 does alone.
        exchange_seconds: To exchange gradients, hidden or not.
        images_per_second: Over all GPUs, everything included.
        limits: What can break.
    """

    gpus: int
    batch: int
    accumulate: int
    step_seconds: float
    exchange_seconds: float
    images_per_second: float
    limits: tuple[Limit, ...]

    @property
    def pictures(self) -> int:
        """Pictures of a step, over all GPUs."""
        return self.gpus * self.batch * self.accumulate

    @property
    def first(self) -> Limit:
        """What is broken and costs most; if nothing is, what is nearest to it."""
        return max(self.limits, key=lambda limit: (limit.lost if limit.used > 1 else 0.0, limit.used))


@dataclass(frozen=True)
class Times:
    """Where the time of a step goes, in seconds.

    Attributes:
        fixed: Fixed cost of its micro-batches.
        computing: All of its micro-batches.
        exchange: All-reduce of the gradients.
        exposed: Part of it that the backward pass does not hide.
        loading: Readers of a GPU, to deliver its pictures.
        fetching: The storage, to deliver all pictures.
        busy: What a GPU cannot do at once.
        alone: What the others wait for rank 0, a mean step.
        saving: A checkpoint.
    """

    fixed: float
    computing: float
    exchange: float
    exposed: float
    loading: float
    fetching: float
    busy: float
    alone: float
    saving: float

    @property
    def step(self) -> float:
        """A step, without what rank 0 does alone: readers work ahead, so that the slowest sets the speed."""
        return max(self.busy, self.loading, self.fetching)


def step_times(work: Work, cluster: Cluster, gpus: int, batch: int, accumulate: int) -> Times:
    """Time of a step by cause.

    Args:
        work: What is trained.
        cluster: On what.
        gpus: How many.
        batch: Pictures of a micro-batch of one GPU.
        accumulate: Micro-batches of a step; the last one's backward pass may hide the exchange.
    """
    computing = accumulate * micro_batch_seconds(cluster.fixed_seconds, work.picture_seconds, batch)
    exchange = exchange_seconds(work.gradient_bytes, gpus, cluster)
    hideable = work.hideable * work.picture_seconds * batch
    exposed = exposed_seconds(exchange, hideable, buckets(work.gradient_bytes))
    opened = openings(gpus * max(1, work.workers), batch, cluster.samples_per_shard, work.window)
    loading = batch * accumulate / loader_rate(work.workers, opened, cluster)
    stored = storage_bytes(opened, machines(gpus, cluster) if work.is_fetched else 1, cluster)
    saving = work.checkpoint_bytes / cluster.checkpoint_gb / 1e9
    return Times(
        fixed=accumulate * cluster.fixed_seconds,
        computing=computing,
        exchange=exchange,
        exposed=exposed,
        loading=loading,
        fetching=gpus * batch * accumulate * stored / cluster.storage_gb / 1e9,
        busy=computing + exposed + (0 if work.workers else loading),
        alone=work.rank_zero_seconds + saving / work.checkpoint_every,
        saving=saving,
    )


def predict(work: Work, cluster: Cluster, gpus: int, batch: int, accumulate: int = 1) -> Prediction:
    """Speed of a training, and how near each limit is; arguments as for `step_times`."""
    times = step_times(work, cluster, gpus, batch, accumulate)
    interval, between = work.checkpoint_every * (times.step + times.alone), _between_failures(cluster, gpus)
    lost = lost_to_failures(interval, 60 * cluster.restart_minutes, between)
    speed = gpus * batch * accumulate / (times.step + times.alone) * (1 - lost)
    best = best_interval(times.saving, between)
    failures = f"; one in {between / 3600:,.0f} h, saved every {_time(interval)} (best {_time(best)})"
    limits = (
        *_reading(work, cluster, gpus, batch * accumulate, times),
        Limit.of_time(FIXED, times.fixed / times.step),
        Limit.of_time(
            EXCHANGE,
            times.exposed / times.step,
            f" ({1000 * times.exposed:.1f} of {1000 * times.exchange:.1f} ms not hidden)",
        ),
        Limit.of_time(
            RANK_ZERO,
            times.alone / (times.step + times.alone),
            f" ({times.alone * work.checkpoint_every:.0f} s a checkpoint)",
        ),
        Limit.of_time(FAILURES, lost, failures),
    )
    return Prediction(gpus, batch, accumulate, times.step, times.exchange, speed, limits)


def _reading(work: Work, cluster: Cluster, gpus: int, pictures: int, times: Times) -> Iterator[Limit]:
    """Limits of shards, readers and storage; `pictures` are a GPU's in a step."""
    readers = gpus * max(1, work.workers)
    said = f"{readers:,} of at most {work.shards:,}"
    yield Limit(SHARDS, readers / work.shards, float(readers > work.shards), said)
    said = f"{pictures / times.busy:.3g} of {pictures / times.loading:,.0f} images/s a GPU"
    if work.workers:
        yield Limit.of_speed(LOADER, times.loading / times.busy, said)
    else:  # nobody reads ahead
        yield Limit.of_time(LOADER, times.loading / times.step, f"; {said}")
    needed = times.fetching / times.busy * cluster.storage_gb
    said = f", fetched by each of {machines(gpus, cluster):,} machines" if work.is_fetched else ""
    yield Limit.of_speed(STORAGE, times.fetching / times.busy, f"{needed:.3g} of {cluster.storage_gb:g} GB/s{said}")


def _between_failures(cluster: Cluster, gpus: int) -> float:
    """Seconds between two interruptions of the whole run."""
    return 3600 * cluster.hours_between_failures / gpus


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"

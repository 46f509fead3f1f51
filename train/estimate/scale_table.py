"""`python -m train scale`: a run on 1, 16, 128, 1,024 GPUs, as two tables; every figure in them is an estimate."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.shards.shard_set import ShardSet
from train.estimate.costs import Costs
from train.estimate.hardware import Cluster, Hardware
from train.estimate.known_bases import base_sizes
from train.estimate.planning import check_fit, checkpoint_bytes, count_chosen, plain
from train.estimate.prediction import SHARDS, TOLERATED, Prediction, Work, predict
from train.estimate.scaling import split_batch
from train.settings import RunSettings
from train.sources.planned_data import open_if_there

_HEAD = ("GPUs", "pictures a step", "micro-batches a GPU", "s a step", "images/s", "of linear", "time", "breaks first")
_DOUBLING = [2**power for power in range(21)]


def make_table(
    run: RunSettings, stage: Any, data: Any, hardware: Hardware, cluster: Cluster, gpus: Sequence[int]
) -> Iterator[str]:
    """Say line by line what a run would be on other numbers of GPUs.

    Args:
        run: Its settings; its own devices and nodes only count for the pictures of a step.
        stage: `class_path` and `init_args` of the stage, not instantiated: no weights are read.
        data: The same of the data source.
        hardware: What estimates assume about a GPU.
        cluster: What they assume about many.
        gpus: How many.

    Raises:
        ValueError: Nothing can be said about this run, or the settings contradict each other.
    """
    for count in gpus:
        if count < 1:
            raise ValueError(f"`gpus`={count} must be at least 1.")
    options, source = plain(stage.init_args), plain(data.init_args)
    published = run.global_batch or source["batch_size"] * run.accumulate * run.devices * run.num_nodes
    total = run.max_steps * published
    shards = open_if_there(source)
    cluster = _with_shards(cluster, shards, total)
    options, costs = _count(run, stage.class_path, options, source, shards, hardware)
    work = describe(run, options, source, costs, hardware, cluster)
    yield from _assumed(run, source, published, costs, hardware, cluster)
    most = source["batch_size"]
    fixed = {count: _split(work, cluster, count, published, most) for count in gpus}
    alone = _split(work, cluster, 1, published, most)
    assert alone is not None  # one GPU takes any number of pictures
    yield f"\n{published:,} pictures a step on any number of GPUs, as the configuration has it\n"
    yield from _table(fixed, published, total, alone)
    yield _growing(_split(work, cluster, count, published, most) for count in _DOUBLING if count <= published)
    larger = {count: predict(work, cluster, count, most) for count in gpus if count * most > published}
    if larger:
        yield f"\n{most} pictures a GPU, however many that are; the same {total:,} pictures in all\n"
        yield from _table(larger, published, total, alone)
        yield _growing(predict(work, cluster, count, most) for count in _DOUBLING)
        yield from _learning(larger.values(), published, run.max_steps, options["optimizer"]["lr"])


def describe(
    run: RunSettings,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
    costs: Costs,
    hardware: Hardware,
    cluster: Cluster,
) -> Work:
    """Put a run into the numbers that do not depend on how many GPUs do it.

    Args:
        run: Its settings.
        options: Arguments of the stage.
        source: Arguments of the data source.
        costs: Of one picture.
        hardware: Speed of a GPU.
        cluster: With a number of shards.
    """
    rate = hardware.peak(run) * hardware.efficiency
    flops = costs.flops
    whole = {**flops, **costs.encoding}  # held-out pictures are encoded in each evaluation, whatever is cached
    encoding = whole["backbone"] + flops["decoder and queries forward"] + whole.get("autoencoder", 0)
    evaluation = source.get("held_out", 0) * (encoding + 3 * flops["unet forward"])  # own, shuffled and no context
    preview = options.get("preview") or {}
    guided = 2 if preview.get("guidance_scale", 1) != 1 else 1
    sheet = math.prod(preview.get(name, 0) for name in ("pictures", "rows", "steps")) * guided * flops["unet forward"]
    operations = evaluation / (run.evaluate_every or run.checkpoint_every) + sheet / run.checkpoint_every
    return Work(
        picture_seconds=costs.total_flops / rate,
        hideable=flops["decoder and queries backward"] / costs.total_flops,
        gradient_bytes=4 * costs.trained,
        checkpoint_bytes=checkpoint_bytes(costs.trained, options.get("ema") is not None),
        checkpoint_every=run.checkpoint_every,
        rank_zero_seconds=operations / rate,
        workers=source.get("num_workers", 0),
        window=source.get("window", 8),
        shards=cluster.shards or 1,
        is_fetched=source.get("cache") is not None,
    )


def _count(
    run: RunSettings,
    kind: str,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
    shards: ShardSet | None,
    hardware: Hardware,
) -> tuple[dict[str, Any], Costs]:
    if not kind.endswith(".SeeCoderStage"):
        raise ValueError(f"`stage.class_path`={kind} is not counted; only train.stages.seecoder.SeeCoderStage is.")
    sizes = base_sizes(options["base"])
    if sizes is None:
        raise ValueError(f"`base`={options['base']} is in no built-in table; give a local folder to count it.")
    check_fit(options, sizes, source.get("image_size", 512))
    return count_chosen(run, options, source, sizes, shards, hardware)


def _with_shards(cluster: Cluster, shards: ShardSet | None, total: int) -> Cluster:
    """Fill in the number of shards: as asked, else those that are there, else what the plan's pictures fill."""
    if cluster.shards is not None:
        return cluster
    if shards is None:
        return replace(cluster, shards=math.ceil(total / cluster.samples_per_shard))
    return replace(
        cluster, shards=len(shards.counts), samples_per_shard=math.ceil(sum(shards.counts) / len(shards.counts))
    )


def _assumed(
    run: RunSettings, source: Mapping[str, Any], published: int, costs: Costs, hardware: Hardware, cluster: Cluster
) -> Iterator[str]:
    rate = hardware.peak(run) * hardware.efficiency
    yield (
        f"plan     {run.max_steps:,} steps of {published:,} pictures; counted: {costs.total_flops / 1e12:.2f} TFLOP a "
        f"picture, {4 * costs.trained / 1e6:.0f} MB of gradients"
    )
    yield (
        f"gpu      ASSUMED {hardware.name(run)}: {1000 * costs.total_flops / rate:.1f} ms a picture "
        f"({hardware.peak(run) / 1e12:g} TFLOP/s x {hardware.efficiency:.0%}) and {1000 * cluster.fixed_seconds:g} ms "
        "a micro-batch"
    )
    yield (
        f"network  ASSUMED {cluster.gpus_per_node} GPUs a machine; {cluster.node_gb:g} GB/s and "
        f"{cluster.node_latency_us:g} us a step within it, {cluster.network_gb:g} GB/s a GPU and "
        f"{cluster.network_latency_us:g} us between machines"
    )
    yield (
        f"data     ASSUMED {cluster.decodes_per_core:g} pictures a second and core, {cluster.picture_kb:g} kB each, "
        f"{cluster.shards:,} shards of {cluster.samples_per_shard:,}, {cluster.storage_gb:g} GB/s in all; "
        f"{source.get('num_workers', 0)} workers a GPU"
    )
    yield (
        f"faults   ASSUMED one in {cluster.hours_between_failures:,.0f} GPU-hours, {cluster.restart_minutes:g} min to "
        f"restart; checkpoints at {cluster.checkpoint_gb:g} GB/s. A cause breaks the run at {TOLERATED:.0%} of its time"
    )


def _split(work: Work, cluster: Cluster, gpus: int, pictures: int, most: int) -> Prediction | None:
    found = split_batch(pictures, gpus, most)
    return None if found is None else predict(work, cluster, gpus, *found)


def _table(rows: Mapping[int, Prediction | None], pictures: int, total: int, alone: Prediction) -> Iterator[str]:
    """What comes out, then how near each limit is."""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|" + "---|" * len(_HEAD)
    for gpus, row in rows.items():
        if row is None:
            few = f"{pictures:,} pictures are fewer than GPUs" if pictures < gpus else "no equal split of the pictures"
            yield f"| {gpus:,} | {pictures:,} | | | | | | not possible: {few} |"
            continue
        linear = row.images_per_second / row.gpus / alone.images_per_second
        yield (
            f"| {gpus:,} | {row.pictures:,} | {row.accumulate} x {row.batch} | {row.step_seconds:.3g} | "
            f"{row.images_per_second:,.0f} | {linear:.0%} | {_duration(total / row.images_per_second)} | "
            f"{_first(row)} |"
        )
    there = [row for row in rows.values() if row is not None]
    if not there:
        return
    names = [limit.name for limit in there[0].limits]
    yield f"\n| GPUs | {' | '.join(names)} |"
    yield "|" + "---|" * (1 + len(names))
    for row in there:
        yield f"| {row.gpus:,} | {' | '.join(limit.said for limit in row.limits)} |"


def _first(row: Prediction) -> str:
    if row.first.used <= 1:
        return f"nothing; next: {row.first.name}, {row.first.said}"
    refused = "; refused" if row.first.name == SHARDS else ""
    return f"{row.first.name}, {row.first.said}{refused}"


def _growing(rows: Iterable[Prediction | None]) -> str:
    """What breaks first as GPUs are doubled."""
    for row in rows:
        if row is not None and row.first.used > 1:
            return f"\nGPUs doubled from 1 on: the first to break is, at {row.gpus:,}, {_first(row)}"
    return "\nGPUs doubled from 1 on: nothing breaks"


def _learning(rows: Iterable[Prediction], published: int, steps: int, rate: float) -> Iterator[str]:
    """What a larger batch changes for learning."""
    yield (
        "\nA larger batch is another training. The rate rises with the batch (Goyal et al., arXiv 1706.02677) or, for "
        "Adam, with its\nsquare root (Malladi et al., arXiv 2205.10287); from some batch on more pictures a step teach "
        "less each (McCandlish et al.,\narXiv 1812.06162), and from which one is not known here."
    )
    for row in rows:
        times = row.pictures / published
        yield (
            f"{row.gpus:,} GPUs: {times:g} x {published:,} pictures in {steps / times:,.0f} steps, learning rate "
            f"{rate:.2g} x {times:g} = {rate * times:.2g} or x {math.sqrt(times):.3g} = {rate * math.sqrt(times):.2g}; "
            f"{_duration(steps * row.pictures / row.images_per_second)} if all {steps:,} steps were needed"
        )


def _duration(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"

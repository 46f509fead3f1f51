"""`python -m train plan`: what a run will do, cost and write, before anything is downloaded or a GPU is rented."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data.shards.shard_set import ShardSet
from seecoder.base_model.facts import check_widths
from train.estimate.costs import Costs, count_costs
from train.estimate.hardware import GIB, Cluster, Hardware
from train.estimate.known_bases import BaseSizes, base_sizes
from train.estimate.memory import AUTO, RESERVE, DeviceMemory, device_memory, fewest_checkpointed, trained_bytes
from train.estimate.scaling import exchange_seconds
from train.settings import OptimizerSettings, RunSettings
from train.sources.caches import check_caches, find_caches
from train.sources.planned_data import Impossible, open_if_there, say_held_out, say_shards
from train.stages.encoder_weights import check_encoder_size
from train.stages.noise_schedule import NoiseSchedule


def make_plan(run: RunSettings, stage: Any, data: Any, hardware: Hardware) -> Iterator[str]:
    """Say line by line what a run will do.

    Args:
        run: Its settings.
        stage: `class_path` and `init_args` of the stage, not instantiated: no weights are read.
        data: The same of the data source.
        hardware: What estimates assume.

    Raises:
        Impossible: The settings contradict each other, or do not fit the memory.
        ValueError: Likewise, by the settings' own checks.
    """
    options, source = plain(stage.init_args), plain(data.init_args)
    batch_size = source["batch_size"]
    processes = run.devices * run.num_nodes
    accumulate = run.micro_batches(batch_size)
    yield f"run      {run.folder}: {run.max_steps:,} optimizer steps, {run.precision}, {run.strategy}"
    step = processes * batch_size * accumulate
    yield (
        f"batch    {run.num_nodes} nodes x {run.devices} devices x {batch_size} samples x {accumulate} micro-batches = "
        f"{step:,} samples a step, {run.max_steps * step:,} in all"
    )
    yield from _steps(run, options)
    shards = open_if_there(source)
    yield from say_held_out(data.class_path, source)
    is_counted = stage.class_path.endswith(".SeeCoderStage")
    if is_counted and shards is not None:
        check_caches(options, source, shards)
    yield from say_shards(run, options if is_counted else None, source, shards, step)
    if not is_counted:
        yield f"costs    not estimated for {stage.class_path}; only train.stages.seecoder.SeeCoderStage is counted"
        return
    sizes = base_sizes(options["base"])
    if sizes is None:
        yield f"costs    not estimated: {options['base']} is in no built-in table; give a local folder to count it"
        return
    image_size = source.get("image_size", 512)
    check_fit(options, sizes, image_size)
    yield f"base     {options['base']} ({sizes.origin}); no weights were read"
    options, costs = count_chosen(run, options, source, sizes, shards, hardware)
    yield from _networks(costs, options)
    yield from _throughput(costs, run, hardware, batch_size, accumulate)
    yield from _disk(costs, run, options)
    yield from _memory(costs, run, options, hardware, batch_size)


def count_run(
    run: RunSettings, options: Mapping[str, Any], source: Mapping[str, Any], sizes: BaseSizes, shards: ShardSet | None
) -> Costs:
    """Count one picture of a run.

    Args:
        run: Its settings.
        options: Arguments of `train.stages.seecoder.SeeCoderStage`.
        source: Arguments of the data source.
        sizes: The base.
        shards: What `open_if_there` gave.
    """
    caches = find_caches(options, source, shards)
    return count_costs(
        options["encoder"],
        sizes,
        source.get("image_size", 512),
        mixed=run.precision != "32-true",
        frozen_dtype=options.get("frozen_dtype", "float32"),
        vae_dtype=options.get("vae_dtype", "float32"),
        gradient_checkpointing=tuple(options.get("gradient_checkpointing") or ()),
        cached_latents=caches.latents.used,
        cached_maps=caches.maps.used,
        encoder_size=options.get("encoder_size"),
    )


def count_chosen(
    run: RunSettings,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
    sizes: BaseSizes,
    shards: ShardSet | None,
    hardware: Hardware,
) -> tuple[dict[str, Any], Costs]:
    """Count a run that recomputes as little as the device's memory allows, where it says "auto".

    Args:
        run: Its settings.
        options: Arguments of `train.stages.seecoder.SeeCoderStage`.
        source: Arguments of the data source.
        sizes: The base.
        shards: What `open_if_there` gave.
        hardware: Says what memory there is.

    Returns:
        The stage's arguments with what recomputes, and what one picture then costs.
    """
    if options.get("gradient_checkpointing") != AUTO:
        return dict(options), count_run(run, options, source, sizes, shards)
    counted: dict[tuple[str, ...], Costs] = {}

    def memory(parts: tuple[str, ...]) -> DeviceMemory:
        trial = {**options, "gradient_checkpointing": parts}
        counted[parts] = count_run(run, trial, source, sizes, shards)
        return device_memory(counted[parts], run, trial, source["batch_size"])

    parts = fewest_checkpointed(memory, hardware.memory(run))
    return {**options, "gradient_checkpointing": parts}, counted[parts]


def _steps(run: RunSettings, options: Mapping[str, Any]) -> Iterator[str]:
    """Rate by step."""
    from train.stages.learning_rate import learning_rate

    settings = OptimizerSettings.parsed(options["optimizer"])
    marks = {0, settings.warmup_steps, run.max_steps // 2, run.max_steps - 1, *settings.milestones}
    rates = [
        f"{step:,}: {learning_rate(step, run.max_steps, settings):.3g}"
        for step in sorted(marks)
        if step < run.max_steps
    ]
    yield f"rate     {', '.join(rates)} (step: learning rate)"


def check_fit(options: Mapping[str, Any], sizes: BaseSizes, image_size: int) -> None:
    """Refuse an encoder or a picture that the base cannot take.

    Raises:
        ValueError: With the numbers.
    """
    NoiseSchedule.check_gamma(options.get("min_snr_gamma"))
    encoder = options["encoder"]
    check_widths(sizes.unet, encoder.get("context_dim", 768), encoder.get("pooled_dim"))
    check_encoder_size(options.get("encoder_size"))
    if image_size % sizes.latent_factor or image_size < 32:
        raise Impossible(
            f"`image_size`={image_size} must be a multiple of {sizes.latent_factor}, the base's pixels for each "
            "latent, and at least 32."
        )


def _networks(costs: Costs, options: Mapping[str, Any]) -> Iterator[str]:
    frozen = ", ".join(f"{name} {count:,}" for name, count in costs.frozen.items() if count)
    yield f"trained  {costs.trained:,} parameters; frozen {sum(costs.frozen.values()):,} ({frozen})"
    parts = "; ".join(f"{name} {_flops(count)}" for name, count in costs.flops.items())
    again = options.get("gradient_checkpointing") or ()
    note = f"; recomputed in the backward pass: {', '.join(again)}" if again else ""
    yield f"flops    {_flops(costs.total_flops)} a picture, counted ({parts}{note})"


def _throughput(costs: Costs, run: RunSettings, hardware: Hardware, batch_size: int, accumulate: int) -> Iterator[str]:
    processes = run.devices * run.num_nodes
    rate = hardware.peak(run) * hardware.efficiency / costs.total_flops
    step = batch_size * accumulate / rate
    cluster = Cluster(gpus_per_node=run.devices)
    exchange = exchange_seconds(4 * costs.trained, processes, cluster)
    seconds = run.max_steps * (step + exchange)
    yield (
        f"speed    {rate:.3g} images/s per device ESTIMATED from {hardware.peak(run) / 1e12:g} TFLOP/s "
        f"({hardware.name(run)}) x {hardware.efficiency:.0%} efficiency, both assumed; {rate * processes:.4g} in all"
    )
    yield (
        f"time     {step + exchange:.3g} s a step, of which {1000 * exchange:.0f} ms to exchange "
        f"{4 * costs.trained / 1e6:.0f} MB of gradients at an assumed {cluster.node_gb:g} GB/s within a node and "
        f"{cluster.network_gb:g} between them; {seconds / 86400:.2f} days in all, {seconds * processes / 3600:,.0f} "
        "device-hours, fixed costs, reading, evaluation and previews left out (ESTIMATED; `python -m train scale` has "
        "them)"
    )


def _disk(costs: Costs, run: RunSettings, options: Mapping[str, Any]) -> Iterator[str]:
    one = checkpoint_bytes(costs.trained, options.get("ema") is not None)
    kept = run.keep_checkpoints + len(run.keep_steps) + (run.keep_best is not None) + 1  # one while it is written
    export = 4 * (costs.trained + costs.frozen["backbone"] + costs.frozen["encoder"])
    more = f"; encoder/ {_bytes(export)}, rewritten with each" if options.get("export_encoder", True) else ""
    yield (
        f"disk     {_bytes(one)} a checkpoint every {run.checkpoint_every:,} steps, {_bytes(one * kept)} for the "
        f"{kept} that lie there at most{more}"
    )


def checkpoint_bytes(trained: int, has_average: bool) -> int:
    """Weights, AdamW's two moments, and the average, float32 each."""
    return 4 * trained * (4 if has_average else 3)


def _memory(
    costs: Costs, run: RunSettings, options: Mapping[str, Any], hardware: Hardware, batch_size: int
) -> Iterator[str]:
    """Memory of one device.

    Raises:
        Impossible: It is more than the device has.
    """
    memory, limit = device_memory(costs, run, options, batch_size), hardware.memory(run)
    has = "" if math.isinf(limit) else f" of {_bytes(limit)} ({hardware.name(run)})"
    yield (
        f"memory   {_bytes(memory.total)}{has} per device ESTIMATED: frozen {_bytes(memory.frozen)}, trained with "
        f"optimizer {_bytes(memory.trained)}, {batch_size} pictures {_bytes(batch_size * memory.picture)} "
        f"({_bytes(costs.activation_bytes)} counted for one, + 10 %)"
    )
    if run.zero_stage:
        plain = trained_bytes(costs.trained, replace(run, strategy="ddp"), options.get("ema") is not None)
        what = "AdamW's state and gradients" if run.zero_stage == 2 else "AdamW's state"
        yield (
            f"zero     stage {run.zero_stage}: {what} shared out over {run.devices * run.num_nodes} processes: "
            f"{_bytes(memory.trained)} where ddp takes {_bytes(plain)}; needs the package deepspeed"
        )
    if memory.total > limit:
        most = memory.most_pictures(limit)
        advice = f"at most {most} fit" if most > 0 else "not even one fits"
        raise Impossible(
            f"`batch_size`={batch_size} needs an estimated {_bytes(memory.total)}, a {hardware.name(run)} has "
            f"{_bytes(limit)}: {advice}. Lower it (run.global_batch keeps the step's size), or checkpoint more "
            "(stage.init_args.gradient_checkpointing)."
        )
    if not memory.leaves_reserve(limit):
        most = max(0, memory.most_pictures((1 - RESERVE) * limit))
        yield (
            f"note     less than {100 * RESERVE:g} % of the memory stays free for fragmentation, NCCL and CUDA, which "
            f"vary; a `batch_size` of {most} would leave that"
        )


def _flops(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.3g} GFLOP"


def _bytes(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def plain(namespace: Any) -> dict[str, Any]:
    """Turn a parser's namespace into nested dicts."""
    return namespace.as_dict() if hasattr(namespace, "as_dict") else dict(namespace)

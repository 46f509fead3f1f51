"""`python -m train plan`: what a run will do, cost and write, before anything is downloaded or a GPU is rented."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from seecoder.base_model.fit import check_parts, check_picture_size
from seecoder.base_model.known_bases import BaseSizes, base_sizes
from seecoder.checks import require, some_of, whole
from train.estimate.hardware import GIB, RESERVE, CountedRun, Hardware, count_run, device_bytes
from train.estimate.laws import predict, split_batch
from train.optimizers import turning_points
from train.settings import OptimizerSettings, RunSettings
from train.sources.caches import check_caches
from train.sources.planned_data import data_lines, held_out_lines, open_if_there
from train.stages.encoder_weights import ENCODER_SIZE
from train.stages.noise_schedule import MIN_SNR_GAMMA, NoiseSchedule
from train.stages.previews import Preview, require_preview

_OPTIMIZER, _BATCH = "optimizer.name=adamw8bit_torchao", "a smaller batch"
_LEVERS = {  # by what they cost a run, the cheapest first, with what changes of its settings and of what is cached
    "gradient_checkpointing=auto": {"gradient_checkpointing": ("encoder", "unet")},
    "cached latents": {"autoencoder": 1.0},
    _OPTIMIZER: {},
    _BATCH: {},
    "frozen_weights=int8": {"frozen_weights": "int8"},
    "offload=[unet, vae]": {"offload": ("unet", "vae")},
}
_EIGHT_BIT_STATE = 2 * (1 + 4 / 256)  # bytes of a weight's two moments, with a scale for each block of 256


def make_plan(
    run: RunSettings, stage: Mapping[str, Any], data: Mapping[str, Any], hardware: Hardware, gpus: Sequence[int] = ()
) -> Iterator[str]:
    """Say line by line what a run will do.

    Args:
        run: Its settings.
        stage: `class_path` and `init_args` of the stage, not instantiated: no weights are read.
        data: The same of the data source.
        hardware: What estimates assume.
        gpus: Numbers of GPUs to compare in a table.

    Raises:
        ValueError: Settings are not accepted, contradict each other, or do not fit the memory.
    """
    require("gpus", gpus, some_of(whole(1), "whole numbers from 1 up"))
    kind, options, source = stage["class_path"], stage["init_args"], data["init_args"]
    accumulate = run.micro_batches(source["batch_size"])
    images = run.devices * run.num_nodes * source["batch_size"] * accumulate
    yield f"run      {run.folder}: {run.max_steps:,} optimizer steps, {run.precision}, {run.strategy}"
    yield (
        f"batch    {run.num_nodes} nodes x {run.devices} devices x {source['batch_size']} samples x {accumulate} "
        f"micro-batches = {images:,} samples a step, {run.max_steps * images:,} in all"
    )
    rates = turning_points(run.max_steps, OptimizerSettings(**options["optimizer"])).items()
    yield f"rate     {', '.join(f'{step:,}: {rate:.3g}' for step, rate in rates)} (step: learning rate)"
    shards, is_counted = open_if_there(source), kind.endswith(".SeeCoderStage")
    yield from held_out_lines(data["class_path"], source)
    if is_counted and shards is not None:
        check_caches(options, source, shards)
    yield from data_lines(run, options if is_counted else None, source, shards, images)
    yield from _absent_weights(options)
    if not is_counted:
        yield f"costs    not estimated for {kind}; only train.stages.SeeCoderStage is counted"
    elif (sizes := base_sizes(options["base"], options.get("prediction_type"), variant=options.get("variant"))) is None:
        yield f"costs    not estimated: {options['base']} is in no built-in table; give a local folder to count it"
    else:
        predicts = _check_fit(options, sizes, source.get("image_size", 512))
        yield f"base     {options['base']} ({sizes.origin}), predicts {predicts}; no weights were read"
        counted = count_run(run, options, source, sizes, shards, hardware)
        yield from _costs(counted)
        yield from _time(counted, images, accumulate)
        yield from _storage(counted, sizes)
        if gpus:
            yield from _table(counted, images, gpus)


def _absent_weights(options: Mapping[str, Any]) -> Iterator[str]:
    """Name what `fit` will read and what is not on this disk yet."""
    base = Path(options.get("base") or "")
    parts = [base / part for part in ("unet", "vae")] if options.get("base") and base.is_dir() else []
    given = filter(None, (options.get(name) for name in ("vae", "backbone_weights", "init_from")))
    absent = [str(folder) for folder in parts if not any(folder.glob("*.safetensors"))]
    absent += [name for name in given if not name.startswith("timm:") and not Path(name).exists()]
    if absent:
        yield f"weights  {', '.join(absent)} not there yet, and `fit` wants {'it' if len(absent) == 1 else 'them'}"


def _check_fit(options: Mapping[str, Any], sizes: BaseSizes, image_size: int) -> str:
    """Refuse an encoder or a picture that the base cannot take; say what its UNet predicts."""
    require("min_snr_gamma", options.get("min_snr_gamma"), MIN_SNR_GAMMA)
    require("encoder_size", options.get("encoder_size"), ENCODER_SIZE)
    preview = options.get("preview")
    require_preview(Preview(**preview) if preview else None, options.get("metrics"))
    check_parts(sizes.unet, sizes.vae, encoder=options["encoder"], training=True)
    check_picture_size(sizes.vae, image_size, image_size)
    return NoiseSchedule(sizes.scheduler).prediction


def _costs(counted: CountedRun) -> Iterator[str]:
    """Parameters and operations."""
    costs = counted.costs
    frozen = ", ".join(f"{name} {count:,}" for name, count in costs.frozen.items() if count)
    yield f"trained  {costs.trained:,} parameters; frozen {sum(costs.frozen.values()):,} ({frozen})"
    parts = "; ".join(f"{name} {_flops(count)}" for name, count in costs.mean_flops.items() if count)
    again = ", ".join(counted.options["gradient_checkpointing"])
    note = f"; recomputed in the backward pass: {again}" if again else ""
    yield f"flops    {_flops(costs.total_flops)} a picture, counted ({parts}{note})"


def _time(counted: CountedRun, images: int, accumulate: int) -> Iterator[str]:
    """Speed of the run as it is configured."""
    run, hardware, processes = counted.run, counted.hardware, counted.run.devices * counted.run.num_nodes
    rate = hardware.speed(run) / counted.costs.total_flops
    yield (
        f"speed    {rate:.3g} images/s per device ESTIMATED from {hardware.peak(run) / 1e12:g} TFLOP/s "
        f"({hardware.name(run)}) x {hardware.efficiency:.0%} efficiency, both assumed; {rate * processes:.4g} in all"
    )
    step, speed, breaks = predict(counted, processes, counted.source["batch_size"], accumulate)
    seconds = run.max_steps * images / speed
    yield (
        f"time     {step:.3g} s a step ({4 * counted.costs.trained / 1e6:.0f} MB of gradients), {seconds / 86400:.2f} "
        f"days and {seconds * processes / 3600:,.0f} device-hours in all, with fixed costs, evaluation and previews "
        f"(ESTIMATED; --gpus 1,16,128 compares); breaks first: {breaks}"
    )


def _storage(counted: CountedRun, sizes: BaseSizes) -> Iterator[str]:
    """Checkpoints on the disk, and memory of one device; an error if it is more than the device has."""
    run, costs = counted.run, counted.costs
    kept = run.keep_checkpoints + len(run.keep_steps) + (run.keep_best is not None) + 1  # one while it is written
    export = 4 * (costs.trained + costs.frozen["backbone"] + costs.frozen["encoder"])
    more = f"; encoder/ {_bytes(export)}, rewritten with each" if counted.options.get("export_encoder", True) else ""
    yield (
        f"disk     {_bytes(counted.checkpoint_bytes)} a checkpoint every {run.checkpoint_every:,} steps, "
        f"{_bytes(counted.checkpoint_bytes * kept)} for the {kept} that lie there at most{more}"
    )
    memory, size = device_bytes(counted), counted.source["batch_size"]
    limit, name, needed = counted.hardware.memory(run), counted.hardware.name(run), sum(memory.values())
    what = {1: "AdamW's state", 2: "AdamW's state and gradients"}.get(run.zero_stage)
    shared = f"; {what} shared out over {run.devices * run.num_nodes} processes" if what else ""
    has = "" if math.isinf(limit) else f" of {_bytes(limit)} ({name})"
    yield (
        f"memory   {_bytes(needed)}{has} per device ESTIMATED: frozen {_bytes(memory['frozen'])}, trained with "
        f"optimizer {_bytes(memory['trained'])}, {size} pictures {_bytes(memory['pictures'])} "
        f"({_bytes(costs.activation_bytes)} counted for one, + 10 %){shared}"
    )
    if has:
        yield (fits := f"fits     {_bytes(limit)} ({name}): {explain_fit(counted, sizes)}")
        if needed > limit:
            raise ValueError(f"`batch_size`={size} needs an estimated {_bytes(needed)}. Does it fit {fits[9:]}.")


def explain_fit(counted: CountedRun, sizes: BaseSizes) -> str:
    """With which levers `RESERVE` of the memory stays free: the fewest, and of as many those that cost the least."""
    source, now, known = counted.source, {**counted.options, **counted.costs.cached}, {(): counted}
    given, safe = source["batch_size"], (1 - RESERVE) * counted.hardware.memory(counted.run)
    subsets = [levers for count in range(len(_LEVERS) + 1) for levers in combinations(_LEVERS, count)]
    for number, levers in enumerate((subsets[-1], *subsets)):  # if all of them fail, the others need not be counted
        new = {name: to for lever in levers for name, to in _LEVERS[lever].items() if now.get(name) != to}
        if (key := tuple(new)) not in known:
            cached = {name: new.get(name, there) for name, there in counted.costs.cached.items()}
            known[key] = count_run(counted.run, now | new, source, sizes, counted.shards, counted.hardware, cached)
        state = _EIGHT_BIT_STATE if _OPTIMIZER in levers else counted.state_bytes
        memory = device_bytes(replace(known[key], state_bytes=state))
        each, fixed = memory.pop("pictures") / given, sum(memory.values())
        batch = max((n for n in range(1, given + 1) if given % n == 0 and fixed + n * each <= safe), default=0)
        words = ", ".join(f"batch_size={batch} and more micro-batches" if one == _BATCH else one for one in levers)
        if number and (batch == given or (batch and _BATCH in levers)):
            return f"yes, {f'with {words}' if words else 'as it is'}: {_bytes(fixed + batch * each)}"
        if not batch and not number:
            return f"no, not even with {', '.join(levers)}: {_bytes(fixed + each)}"
    raise AssertionError("All levers together were enough.")


def _table(counted: CountedRun, images: int, gpus: Sequence[int]) -> Iterator[str]:
    """The run on other numbers of GPUs, with the same images a step, and with more where they would be few for each."""
    hardware, size, total = counted.hardware, counted.source["batch_size"], counted.run.max_steps * images
    yield (
        f"gpus     ESTIMATED with {hardware.fixed_seconds:g} s a micro-batch and {hardware.network_gb:g} GB/s a GPU "
        "between machines (--hardware.*); train/estimate/laws.py says what else is assumed, and why\n\n"
        "| GPUs | images a step | images/s | of linear | time for the run | breaks first |\n|---|---|---|---|---|---|"
    )
    _, alone, _ = predict(counted, 1, size, max(1, images // size))
    for count in gpus:
        same = split_batch(images, count, size)
        if same is None:
            yield f"| {count:,} | {images:,} | | | | not possible: {images:,} images are no equal number for each GPU |"
        for batch, accumulate in filter(None, (same, (size, 1) if count * size > images else None)):
            _, speed, breaks = predict(counted, count, batch, accumulate)
            more = count * batch * accumulate / images
            rate = f"; learning rate x {math.sqrt(more):.3g} to {more:.3g}" if more != 1 else ""
            yield (
                f"| {count:,} | {count * batch * accumulate:,} ({accumulate} x {batch}){rate} | {speed:,.0f} "
                f"| {speed / count / alone:.0%} | {total / speed / 86400:.2f} days | {breaks} |"
            )


def _flops(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.3g} GFLOP"


def _bytes(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"

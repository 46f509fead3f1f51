"""Speed on many GPUs, and what breaks first, against hand computations and computed thresholds."""

from dataclasses import replace

import pytest

from train.estimate.hardware import Cluster
from train.estimate.prediction import (
    EXCHANGE,
    FAILURES,
    FIXED,
    LOADER,
    RANK_ZERO,
    SHARDS,
    STORAGE,
    TOLERATED,
    Work,
    predict,
)

WORK = Work(
    picture_seconds=0.05,
    hideable=0.4,
    gradient_bytes=400_000_000,
    checkpoint_bytes=1_600_000_000,
    checkpoint_every=1000,
    rank_zero_seconds=0.0,
    workers=8,
    window=8,
    shards=1_000_000,
)
IDEAL = Cluster(fixed_seconds=0.0, checkpoint_gb=1e9, hours_between_failures=1e12, storage_gb=1e9, opening_ms=0.0)


def named(prediction, name):
    return next(limit for limit in prediction.limits if limit.name == name)


def test_a_case_by_hand():
    work = replace(WORK, rank_zero_seconds=0.02)
    cluster = Cluster(
        fixed_seconds=0.1,
        node_gb=100.0,
        network_gb=10.0,
        node_latency_us=10.0,
        network_latency_us=20.0,
        checkpoint_gb=0.8,
        hours_between_failures=1000.0,
        restart_minutes=10.0,
    )
    found = predict(work, cluster, gpus=16, batch=4, accumulate=2)
    computing = 2 * (0.1 + 0.05 * 4)
    flat = 2 * 15 / 16 * 0.4 / 80 + 16 * (28 * 10e-6 + 2 * 20e-6)  # 8 ports of 10 GB/s; 16 buckets
    nested = 2 * 7 / 8 * 0.4 / 100 + 2 * 1 / 2 * 0.05 / 10 + 16 * (14 * 10e-6 + 2 * 20e-6)
    exchange = min(flat, nested)
    assert found.exchange_seconds == pytest.approx(exchange)
    step = computing + max(exchange / 16, exchange - 0.4 * 0.05 * 4)
    assert found.step_seconds == pytest.approx(step)
    alone = 0.02 + 1.6 / 0.8 / 1000
    lost = (1000 * (step + alone) / 2 + 600) / (3600 * 1000 / 16)
    assert found.pictures == 128
    assert found.images_per_second == pytest.approx(128 / (step + alone) * (1 - lost))
    assert named(found, FIXED).lost == pytest.approx(0.2 / step)
    assert named(found, RANK_ZERO).lost == pytest.approx(alone / (step + alone))
    assert named(found, FAILURES).lost == pytest.approx(lost)


def test_one_gpu_has_no_exchange_and_an_ideal_cluster_is_linear():
    one = predict(WORK, IDEAL, 1, 32)
    assert one.exchange_seconds == 0
    assert one.images_per_second == pytest.approx(20)
    free = replace(IDEAL, node_latency_us=0.0, network_latency_us=0.0, node_gb=1e12, network_gb=1e12)
    assert predict(WORK, free, 1024, 32).images_per_second == pytest.approx(1024 * 20)


def test_with_a_fixed_batch_a_gpu_speed_rises_and_efficiency_falls():
    rows = [predict(WORK, Cluster(), 2**power, 32) for power in range(11)]
    speeds = [row.images_per_second for row in rows]
    each = [row.images_per_second / row.gpus for row in rows]
    assert speeds == sorted(speeds)
    assert each == sorted(each, reverse=True)


def test_accumulation_gains_nothing_but_the_exchange():
    slow = replace(IDEAL, network_gb=0.5)
    whole, parts = (
        predict(replace(WORK, hideable=0.0), slow, 16, 32),
        predict(replace(WORK, hideable=0.0), slow, 16, 32, 4),
    )
    assert parts.step_seconds - whole.exchange_seconds == pytest.approx(
        4 * (whole.step_seconds - whole.exchange_seconds)
    )
    assert parts.images_per_second > whole.images_per_second


def broken(work=WORK, cluster=IDEAL, gpus=16, batch=32):
    found = predict(work, cluster, gpus, batch)
    return found.first.name if found.first.used > 1 else None


def test_the_fixed_cost_breaks_at_its_threshold():
    """fixed / (fixed + batch * each) is a tenth at batch = 9 fixed / each."""
    cluster = replace(IDEAL, fixed_seconds=0.05 * 10.5 / 9)
    assert TOLERATED == 0.1
    assert broken(cluster=cluster, gpus=1, batch=10) == FIXED
    assert broken(cluster=cluster, gpus=1, batch=11) is None


def test_the_exchange_breaks_at_its_threshold():
    """Nothing hidden and no latency: exposed / (1.6 + exposed) is a tenth at 1.6 / 9 seconds."""
    work = replace(WORK, hideable=0.0)
    cluster = replace(IDEAL, gpus_per_node=1, network_latency_us=0.0)
    threshold = 2 * 15 / 16 * 0.4 / (1.6 / 9)  # GB/s
    assert broken(work, replace(cluster, network_gb=0.99 * threshold)) == EXCHANGE
    assert broken(work, replace(cluster, network_gb=1.01 * threshold)) is None


def test_more_readers_than_shards_are_refused_before_anything_else():
    assert broken(replace(WORK, shards=128)) is None
    assert broken(replace(WORK, shards=127)) == SHARDS
    assert broken(replace(WORK, shards=127), replace(IDEAL, fixed_seconds=1e6)) == SHARDS


def test_the_loader_breaks_when_its_cores_decode_less_than_a_gpu_takes():
    """20 pictures a second by 8 workers, or by 2 cores if there are no more."""
    for cluster, decodes in ((IDEAL, 2.5), (replace(IDEAL, cores_per_gpu=2), 10)):
        assert broken(cluster=replace(cluster, decodes_per_core=0.99 * decodes)) == LOADER
        assert broken(cluster=replace(cluster, decodes_per_core=1.01 * decodes)) is None
    slow = predict(WORK, replace(IDEAL, decodes_per_core=1.25), 1, 32)
    assert slow.images_per_second == pytest.approx(10)


def test_without_workers_nobody_reads_ahead():
    found = predict(replace(WORK, workers=0), replace(IDEAL, decodes_per_core=20.0), 1, 32)
    assert found.step_seconds == pytest.approx(32 * (0.05 + 0.05))
    assert named(found, LOADER).lost == pytest.approx(0.5)


def test_the_storage_breaks_and_sooner_where_each_machine_fetches_all():
    """16 GPUs take 320 pictures a second of 100 kB."""
    for work, needed in ((WORK, 0.032), (replace(WORK, is_fetched=True), 0.064)):
        cluster = replace(IDEAL, samples_per_shard=1_000_000_000)  # next to no openings
        cluster = replace(cluster, node_latency_us=0.0, network_latency_us=0.0, node_gb=1e12, network_gb=1e12)
        quiet = replace(work, window=1)
        assert broken(quiet, replace(cluster, storage_gb=0.9 * needed)) == STORAGE
        spare = predict(quiet, replace(cluster, storage_gb=1.1 * needed), 16, 32)
        opened = 128 / 1e9 * 50 * 1e9 / 1e5  # indices, relative to pictures
        assert named(spare, STORAGE).used == pytest.approx((1 + opened / (2 if work.is_fetched else 1)) / 1.1, rel=1e-6)


def test_waiting_for_rank_0_and_failures_break_at_their_thresholds():
    assert broken(replace(WORK, rank_zero_seconds=1.61 / 9 * 1.01)) == RANK_ZERO
    assert broken(replace(WORK, rank_zero_seconds=1.59 / 9 * 0.99)) is None
    interval = 1000 * predict(WORK, IDEAL, 16, 32).step_seconds
    hours = 16 * (interval / 2 + 600) / TOLERATED / 3600
    assert broken(cluster=replace(IDEAL, hours_between_failures=0.99 * hours)) == FAILURES
    assert broken(cluster=replace(IDEAL, hours_between_failures=1.01 * hours)) is None


def test_of_two_that_are_broken_the_first_costs_more():
    """Of 3.2 s a half is fixed; when reading takes 6.4 s, waiting for it costs a half and the fixed cost a quarter."""
    cluster = replace(IDEAL, fixed_seconds=1.6)
    assert broken(cluster=replace(cluster, decodes_per_core=32 / 3.19 / 8)) == FIXED
    assert broken(cluster=replace(cluster, decodes_per_core=32 / 6.4 / 8)) == LOADER

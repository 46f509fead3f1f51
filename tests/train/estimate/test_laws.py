"""Laws of scaling against closed forms, and against what others have published."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from train.estimate.costs import Costs
from train.estimate.hardware import CountedRun, Hardware
from train.estimate.laws import (
    BUCKET,
    CHECKPOINT_SPEED,
    MACHINE_LATENCY,
    MACHINE_SPEED,
    NETWORK_LATENCY,
    TOLERATED,
    buckets,
    exchange_seconds,
    exposed_seconds,
    predict,
    rank_zero_seconds,
    split_batch,
)
from train.settings import RunSettings

FLOPS = {
    "backbone": 10 * 10**9,
    "decoder and queries forward": 5 * 10**9,
    "autoencoder": 5 * 10**9,
    "unet forward": 10 * 10**9,
    "decoder and queries backward": 20 * 10**9,
}
COSTS = Costs(10**8, {}, 0, FLOPS, 0)  # 50 GFLOP, at 1 TFLOP/s 0.05 s a picture, of which 0.02 s hide the exchange
RUN = RunSettings("run", 1, accelerator="gpu", precision="bf16-mixed", checkpoint_every=10**9)
THREE_SHARDS = SimpleNamespace(counts=[8, 8, 8])
HARDWARE = Hardware(tflops=1, efficiency=1.0, fixed_seconds=0.0)


def counted(
    *,
    run: RunSettings = RUN,
    hardware: Hardware = HARDWARE,
    costs: Costs = COSTS,
    options: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    shards: Any = None,
) -> CountedRun:
    return CountedRun(run, options or {}, source or {"num_workers": 8}, shards, hardware, costs)


# Micro-batch ----------------------------------------------------------------------------------------------------------


def test_a_step_is_the_fixed_cost_and_the_pictures_of_its_micro_batches():
    work = counted(hardware=replace(HARDWARE, fixed_seconds=0.1))
    step, speed, _ = predict(work, 1, 4, 2)
    assert step == pytest.approx(2 * (0.1 + 4 * 0.05))
    assert speed == pytest.approx(8 / step)


def test_what_is_cached_costs_no_time():
    costs = replace(COSTS, cached={"backbone": 1.0, "autoencoder": 1.0})
    assert predict(counted(costs=costs), 1, 10)[0] == pytest.approx(10 * 0.035)


def test_the_default_fixed_cost_is_that_of_two_published_rates():
    """NVIDIA's ControlNet on an A100: 21.52 pictures a second in micro-batches of 8, 27.20 in those of 32."""
    slope = (32 / 27.20 - 8 / 21.52) / 24
    assert slope == pytest.approx(0.03353, abs=1e-5)
    assert Hardware().fixed_seconds == pytest.approx(8 / 21.52 - 8 * slope, rel=0.05)


def test_the_fixed_cost_breaks_a_run_at_its_threshold():
    """fixed / (fixed + batch * each) is a tenth at batch = 9 fixed / each."""
    work = counted(hardware=replace(HARDWARE, fixed_seconds=0.05 * 10.5 / 9))
    assert TOLERATED == 0.1
    assert predict(work, 1, 10)[2].startswith("fixed cost of micro-batches, 10.4%")
    assert predict(work, 1, 11)[2].startswith("nothing; next: fixed cost of micro-batches, 9.6%")


# Exchange -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_sends_2_n_minus_1_nths_of_the_bytes_in_2_n_minus_1_steps(ranks: int):
    size = 4e8  # 16 buckets
    expected = 2 * (ranks - 1) * (size / ranks / MACHINE_SPEED + 16 * MACHINE_LATENCY)
    assert exchange_seconds(size, ranks, 8, 25e9) == pytest.approx(expected)


def test_alone_there_is_nothing_to_exchange():
    assert exchange_seconds(1e9, 1, 8, 25e9) == 0
    assert exposed_seconds(0.0, 0.0, 7) == 0


def test_within_a_machine_the_network_does_not_matter():
    slow, fast = (exchange_seconds(4e8, 8, 8, speed) for speed in (1e6, 1e12))
    assert slow == fast
    assert exchange_seconds(4e8, 9, 8, 1e6) > 100 * slow


def test_between_machines_each_gpu_sends_its_part():
    """Two machines of 8: the inner ring as alone, then 2 steps in which each GPU sends half of an eighth."""
    inner = exchange_seconds(4e8, 8, 8, 25e9)
    outer = 2 * (4e8 / 8 / 2 / 25e9 + 16 * NETWORK_LATENCY)
    assert exchange_seconds(4e8, 16, 8, 25e9) == pytest.approx(inner + outer)


def test_one_gpu_a_machine_is_a_ring_of_the_network():
    expected = 2 * 15 * (4e8 / 16 / 10e9 + 16 * NETWORK_LATENCY)
    assert exchange_seconds(4e8, 16, 1, 10e9) == pytest.approx(expected)


def test_a_run_on_several_gpus_says_how_many_a_machine_has():
    slow = replace(HARDWARE, network_gb=0.01)
    machines = replace(RUN, devices=4, num_nodes=2)
    assert predict(counted(hardware=slow), 8, 1)[0] < 0.1  # one machine of 8, where nothing is said
    assert predict(counted(hardware=slow, run=machines), 8, 1)[0] > 1


# Hiding ---------------------------------------------------------------------------------------------------------------


def test_what_the_backward_pass_hides():
    assert buckets(10 * BUCKET + 1) == 11
    assert exposed_seconds(1.0, 0.0, 10) == 1.0
    assert exposed_seconds(1.0, 0.4, 10) == pytest.approx(0.6)
    assert exposed_seconds(1.0, 5.0, 10) == pytest.approx(0.1)  # the last bucket is ready when nothing is left to do


def test_only_the_last_micro_batch_hides_the_exchange():
    slow = counted(hardware=replace(HARDWARE, network_gb=0.1))
    exchange = exchange_seconds(4e8, 16, 8, 0.1e9)
    assert exchange > 10 * 0.02
    assert predict(slow, 16, 10)[0] == pytest.approx(10 * 0.05 + exchange - 10 * 0.02)
    assert predict(slow, 16, 10, 4)[0] == pytest.approx(40 * 0.05 + exchange - 10 * 0.02)


def test_the_exchange_breaks_a_run_at_its_threshold():
    """Of a step of 1.6 s and what is exposed, that is a tenth at 1.6 / 9 s."""
    costs = replace(COSTS, flops={**FLOPS, "decoder and queries backward": 0, "unet backward": 20 * 10**9})
    rest = exchange_seconds(4e8, 8, 8, 25e9) + 2 * 16 * NETWORK_LATENCY
    network = 2 * 4e8 / 16 / (1.6 / 9 - rest)
    for factor, starts in ((0.99, "exchange of gradients, 10"), (1.01, "nothing; next: exchange of gradients, 9.9%")):
        work = counted(costs=costs, hardware=replace(HARDWARE, network_gb=factor * network / 1e9))
        assert predict(work, 16, 32)[2].startswith(starts)


def test_the_exchange_lies_where_published_trainings_put_it():
    """Stable Diffusion 2's UNet, all 866 M gradients, 2,048 pictures a step in micro-batches of 16 on 8 to 128 A100s.

    Images a second by mosaicml/diffusion (README, micro-batch in yamls/hydra-yamls): 290 -> 4,590 at 512 pixels, 1,100
    -> 11,600 at 256. On 8 GPUs one step in 16 micro-batches exchanges, on 128 each. So what is lost is the exchange,
    and it must lie between nothing hidden and all of the backward pass (two thirds of a step) hiding it.
    """
    size = 4 * 866e6
    exchange = exchange_seconds(size, 128, 8, 25e9)
    for alone, published in ((290, 4590), (1100, 11600)):
        computing = 16 * 8 / alone
        hidden, exposed = (
            2048 / (computing + exposed_seconds(exchange, part * computing, buckets(size))) for part in (2 / 3, 0.0)
        )
        assert exposed < published < hidden
    assert 128 / 8 * 1100 > 1.5 * 11600  # and without any exchange it would be far off


def test_without_latency_and_on_a_fast_network_speed_is_linear(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("MACHINE_SPEED", 1e18), ("MACHINE_LATENCY", 0.0), ("NETWORK_LATENCY", 0.0)):
        monkeypatch.setattr(f"train.estimate.laws.{name}", value)
    assert predict(counted(hardware=replace(HARDWARE, network_gb=1e9)), 1024, 32)[1] == pytest.approx(1024 * 20)


def test_speed_rises_and_efficiency_falls_with_the_number_of_gpus():
    speeds = {2**power: predict(counted(hardware=Hardware()), 2**power, 32)[1] for power in range(11)}
    each = [speed / gpus for gpus, speed in speeds.items()]
    assert list(speeds.values()) == sorted(speeds.values())
    assert each == sorted(each, reverse=True)


# Rank 0 ---------------------------------------------------------------------------------------------------------------


def test_rank_0_saves_evaluates_and_draws_alone():
    run = replace(RUN, checkpoint_every=100, evaluate_every=50)
    saving = 4 * 3 * 10**8 / CHECKPOINT_SPEED / 100
    assert rank_zero_seconds(counted(run=run)) == pytest.approx(saving)
    average = counted(run=run, options={"ema": {}})
    assert rank_zero_seconds(average) == pytest.approx(4 / 3 * saving)
    evaluated = counted(run=run, source={"held_out": 8})
    assert rank_zero_seconds(evaluated) == pytest.approx(saving + 8 * (0.02 + 3 * 0.01) / 50)
    preview = {"pictures": 2, "rows": 3, "steps": 5, "guidance_scale": 2.0}
    assert rank_zero_seconds(counted(run=run, options={"preview": preview})) == pytest.approx(saving + 60 * 0.01 / 100)
    preview["guidance_scale"] = 1
    assert rank_zero_seconds(counted(run=run, options={"preview": preview})) == pytest.approx(saving + 30 * 0.01 / 100)


def test_held_out_pictures_are_encoded_whatever_is_cached():
    costs = replace(COSTS, cached={"backbone": 1.0, "autoencoder": 1.0})
    raw, cached = (rank_zero_seconds(counted(costs=each, source={"held_out": 8})) for each in (COSTS, costs))
    assert raw == cached > 0


def test_waiting_for_rank_0_breaks_a_run_at_its_threshold():
    """Saving takes 2.4 s for each checkpoint; beside a step of 1.6 s it is a tenth at 2.4 / (1.6 / 9) steps."""
    steps = 2.4 / (1.6 / 9)
    for every, starts in ((math.floor(steps), "waiting for rank 0, 10"), (math.ceil(steps), "nothing; next: waiting")):
        assert predict(counted(run=replace(RUN, checkpoint_every=every)), 1, 32)[2].startswith(starts)


def test_everybody_waits_for_rank_0():
    work = counted(run=replace(RUN, checkpoint_every=1))
    step, speed, breaks = predict(work, 1, 32)
    assert step == pytest.approx(1.6)
    assert speed == pytest.approx(32 / (1.6 + 2.4))
    assert breaks == "waiting for rank 0, 60.0%"


# Readers and batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "gpus", "refused"), [(0, 3, 0), (0, 4, 4), (1, 3, 0), (2, 1, 0), (2, 2, 4)])
def test_more_readers_than_shards_are_refused(workers: int, gpus: int, refused: int):
    work = counted(source={"num_workers": workers}, shards=THREE_SHARDS)
    breaks = predict(work, gpus, 4)[2]
    if refused:
        assert breaks == f"refused: {refused} readers for 3 shards"
    else:
        assert "refused" not in breaks


def test_of_several_causes_the_dearest_is_named():
    slow = replace(HARDWARE, fixed_seconds=100.0)
    work = counted(run=replace(RUN, checkpoint_every=1), hardware=slow)  # 1.2 s for each checkpoint
    assert predict(work, 1, 32)[2].startswith("fixed cost of micro-batches, 98")


@pytest.mark.parametrize(
    ("images", "gpus", "largest", "expected"),
    [
        (512, 1, 32, (32, 16)),
        (512, 16, 32, (32, 1)),
        (512, 128, 32, (4, 1)),
        (512, 512, 32, (1, 1)),
        (512, 1024, 32, None),
        (512, 48, 32, None),
        (96, 2, 32, (24, 2)),
        (14, 2, 4, (1, 7)),
    ],
)
def test_a_batch_is_split_equally_or_not_at_all(images: int, gpus: int, largest: int, expected: tuple[int, int] | None):
    assert split_batch(images, gpus, largest) == expected
    if expected is not None:
        assert math.prod(expected) * gpus == images

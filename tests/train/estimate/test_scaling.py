"""Laws of scaling against closed forms, and against what others have published."""

import math

import pytest

from train.estimate.hardware import Cluster
from train.estimate.scaling import (
    BUCKET,
    INDEX_BYTES,
    best_interval,
    buckets,
    exchange_seconds,
    exposed_seconds,
    fit_line,
    loader_rate,
    lost_to_failures,
    machines,
    micro_batch_seconds,
    openings,
    ring_seconds,
    split_batch,
    storage_bytes,
)

NO_LATENCY = {"node_latency_us": 0.0, "network_latency_us": 0.0}


def test_the_fit_recovers_what_it_was_made_from():
    places = [1.0, 4.0, 16.0, 64.0]
    fixed, slope = fit_line(places, [micro_batch_seconds(0.03, 0.007, place) for place in places])
    assert fixed == pytest.approx(0.03)
    assert slope == pytest.approx(0.007)


def test_the_fit_weighs_relative_errors():
    """One percent off anywhere moves it by no more than a few percent; plain least squares would lose the small end."""
    places = [1.0, 4.0, 16.0, 256.0]
    true = [0.01 + 0.01 * place for place in places]
    for number in range(len(places)):
        values = [value * (1.01 if number == other else 1) for other, value in enumerate(true)]
        fixed, slope = fit_line(places, values)
        assert fixed == pytest.approx(0.01, rel=0.1)
        assert slope == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(("places", "values"), [([4, 4], [1, 2]), ([1, 2], [0, 1])])
def test_no_line_through_one_place_or_nothing(places, values):
    with pytest.raises(ValueError, match="two different places and positive"):
        fit_line(places, values)


def test_the_default_fixed_cost_is_that_of_the_two_published_rates():
    fixed, slope = fit_line([8, 32], [8 / 21.52, 32 / 27.20])
    assert fixed == pytest.approx(0.1035, abs=1e-4)
    assert slope == pytest.approx(0.03353, abs=1e-5)
    assert Cluster().fixed_seconds == pytest.approx(fixed, rel=0.05)


@pytest.mark.parametrize("ranks", [2, 3, 8, 1024])
def test_a_ring_sends_2_n_minus_1_nths_of_the_bytes_in_2_n_minus_1_steps(ranks):
    assert ring_seconds(1e9, ranks, 1e9, 0.0) == pytest.approx(2 * (ranks - 1) / ranks)
    assert ring_seconds(0, ranks, 1e9, 1.0) == 2 * (ranks - 1)
    assert ring_seconds(0, ranks, 1e9, 1.0, calls=5) == 10 * (ranks - 1)


def test_alone_there_is_nothing_to_exchange():
    assert ring_seconds(1e9, 1, 1.0, 1.0, 7) == 0
    assert exchange_seconds(1e9, 1, Cluster()) == 0
    assert exposed_seconds(0.0, 0.0, 7) == 0


def test_within_a_machine_the_network_does_not_matter():
    slow, fast = (exchange_seconds(4e8, 8, Cluster(network_gb=speed)) for speed in (0.001, 1000.0))
    assert slow == fast == pytest.approx(2 * 7 / 8 * 4e8 / 235e9 + 16 * 14 * 3.4e-6)
    assert exchange_seconds(4e8, 9, Cluster(network_gb=0.001)) > 100 * slow


def test_the_faster_of_one_ring_and_nested_rings():
    """Large pieces favour the ring through all ports, many machines the shorter rings."""
    one = Cluster(**NO_LATENCY, node_gb=100.0, network_gb=25.0)
    assert exchange_seconds(8e9, 32, one) == pytest.approx(2 * 31 / 32 * 8e9 / 100e9)  # 8 ports: 200 GB/s; 100 inside
    nested = Cluster(node_gb=1e9, network_gb=1e9, node_latency_us=1.0, network_latency_us=10.0)
    pieces, steps = buckets(8e9), 2 * 7 * 1e-6 + 2 * 127 * 10e-6
    assert exchange_seconds(8e9, 1024, nested) == pytest.approx(pieces * steps, rel=1e-3)


def test_one_gpu_a_machine_is_a_ring_of_the_network():
    cluster = Cluster(gpus_per_node=1, network_gb=10.0, network_latency_us=5.0)
    assert exchange_seconds(4e8, 16, cluster) == pytest.approx(ring_seconds(4e8, 16, 10e9, 5e-6, buckets(4e8)))
    assert machines(16, cluster) == 16
    assert machines(9, Cluster()) == 2


def test_what_the_backward_pass_hides():
    assert buckets(10 * BUCKET + 1) == 11
    assert exposed_seconds(1.0, 0.0, 10) == 1.0
    assert exposed_seconds(1.0, 0.4, 10) == pytest.approx(0.6)
    assert exposed_seconds(1.0, 5.0, 10) == pytest.approx(0.1)  # the last bucket is ready when nothing is left to do


@pytest.mark.parametrize(
    ("pictures", "gpus", "most", "expected"),
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
def test_a_batch_is_split_equally_or_not_at_all(pictures, gpus, most, expected):
    assert split_batch(pictures, gpus, most) == expected
    if expected is not None:
        assert math.prod(expected) * gpus == pictures


def test_openings_are_few_on_few_gpus_and_never_more_than_a_batch_needs():
    assert openings(8, 32, 1000, 8) == 8 / 1000  # each reader, each shard, once
    assert openings(100_000, 32, 1000, 8) == 8 / 32
    assert openings(100_000, 4, 1000, 8) == 1


def test_readers_are_as_fast_as_their_cores_decode_and_open():
    cluster = Cluster(decodes_per_core=200.0, opening_ms=2.0, samples_per_shard=5000, cores_per_gpu=4)
    assert loader_rate(3, 0.0, cluster) == pytest.approx(600)
    assert loader_rate(0, 0.0, cluster) == pytest.approx(200)  # the training process itself
    assert loader_rate(99, 0.0, cluster) == pytest.approx(800)
    assert loader_rate(1, 0.5, cluster) == pytest.approx(1 / (0.005 + 0.5 * 0.010))


def test_machines_that_fetch_whole_shards_each_take_every_picture():
    cluster = Cluster(picture_kb=100, samples_per_shard=1000)
    assert storage_bytes(0.0, 1, cluster) == 1e5
    assert storage_bytes(0.0, 128, cluster) == 128e5
    assert storage_bytes(0.25, 1, cluster) == 1e5 + 0.25 * 1000 * INDEX_BYTES


def test_youngs_interval_loses_least():
    saving, between = 3.0, 3600.0
    best = best_interval(saving, between)

    def lost(interval: float) -> float:
        return saving / interval + lost_to_failures(interval, 0.0, between)

    assert lost(best) < min(lost(0.9 * best), lost(1.1 * best))
    assert lost_to_failures(1e9, 0.0, 1.0) == 1


def test_the_exchange_lies_where_published_trainings_put_it():
    """Stable Diffusion 2's UNet, all 866 M gradients, 2,048 pictures a step in micro-batches of 16 on 8 to 128 A100s.

    Images a second by mosaicml/diffusion (README, micro-batch in yamls/hydra-yamls): 290 -> 4,590 at 512 pixels, 1,100
    -> 11,600 at 256. On 8 GPUs one step in 16 micro-batches exchanges, on 128 each. So what is lost is the exchange,
    and it must lie between nothing hidden and all of the backward pass (two thirds of a step) hiding it.
    """
    size = 4 * 866e6
    exchange = exchange_seconds(size, 128, Cluster())
    for alone, published in ((290, 4590), (1100, 11600)):
        computing = 16 * 8 / alone
        hidden, exposed = (
            2048 / (computing + exposed_seconds(exchange, share * computing, buckets(size))) for share in (2 / 3, 0.0)
        )
        assert exposed < published < hidden
    assert 128 / 8 * 1100 > 1.5 * 11600  # and without any exchange it would be far off

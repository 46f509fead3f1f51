"""The sampling benchmark runs every method with SDXL's interface, and says what falls short."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from scripts.benchmarks.dead_steps import dead_steps
from scripts.benchmarks.sampling_gpu import GPU_METHODS, SDXL_UNET, autoencoder, gpu_rows, on_device

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_sampling"


@pytest.fixture(scope="module")
def bench() -> Any:
    from scripts.benchmarks import sampling

    return sampling


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """SDXL's structure in miniature: the interface of its UNet is what counts."""
    small = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "addition_time_embed_dim": 8,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**{**SDXL_UNET, **small})
    return unet.eval().requires_grad_(False), autoencoder((4, 4, 4), norm_num_groups=2)


# A stride of 64 cells is wider than the windows of the miniature.
@pytest.mark.parametrize("name", [name for name in GPU_METHODS if "stride 64" not in name])
def test_every_method_runs_with_the_interface_of_sdxl(tiny: tuple[Any, Any], name: str):
    row = on_device(*tiny, name, 2, 3)
    assert row["seconds"] > 0
    assert (row["method"], row["pixels"]) == (name, 2048)


def test_the_clock_counts_nested_calls_once_and_puts_everything_back(bench: Any, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def later(seconds: float) -> None:
        now[0] += seconds

    class Owner:
        def outer(self) -> None:
            later(1.0)
            self.inner()

        def inner(self) -> None:
            later(2.0)

    owner, module, clock = Owner(), SimpleNamespace(own=lambda: later(4.0)), bench.Clock()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    own = module.own
    with clock.around(owner, "outer"), clock.around(owner, "inner"), clock.around(module, "own"):
        owner.outer()
        later(100.0)
        owner.inner()
        module.own()
    assert clock.seconds == 3.0 + 2.0 + 4.0
    assert vars(owner) == {}
    assert module.own is own


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
    rows = gpu_rows(50)
    assert {row["seconds"] for row in rows} == {"not measured"}
    assert {row["method"] for row in rows} == set(GPU_METHODS)


def test_shortfalls_are_named(bench: Any):
    good = {
        "evaluations": [{"method": "plain", "pixels": 2048, "counted": 200.0, "arithmetic": 200, "equal": True}],
        "overhead": [{"method": "plain", "share_outside": 0.02, "within_goal": True}],
        "memory": [{"views": 16, "mebibytes": 9.0, "batch": 16}, {"views": 49, "mebibytes": 33.0, "batch": 16}],
    }
    assert list(bench.shortfalls(good)) == []
    bad = {
        "evaluations": [{**good["evaluations"][0], "counted": 210.0, "equal": False}],
        "overhead": [{"method": "plain", "share_outside": 0.07, "within_goal": False}],
        "memory": [*good["memory"], {"views": 169, "mebibytes": 35.0, "batch": 16}],
    }
    evaluations, overhead, memory = bench.shortfalls(bad)
    assert "210 evaluations, 200 expected" in evaluations
    assert "7.0% of the run" in overhead
    assert "33.0 to 35.0 MiB" in memory


def test_what_is_counted_is_the_arithmetic(bench: Any, monkeypatch: pytest.MonkeyPatch):
    """The cheap rows of the table; the script counts all."""
    cheap = ("plain", "RectifiedHR")
    monkeypatch.setattr(bench, "ARITHMETIC", tuple(row for row in bench.ARITHMETIC if row[0] in cheap))
    rows = bench.evaluations()
    assert len(rows) == 4
    assert all(row["equal"] for row in rows)


def test_left_out_steps_are_compared_with_all_of_them():
    """Three steps of one scene: at a threshold just below 1 the second phase leaves out its first."""
    rounding, skipping = dead_steps(sizes=((2, 1),), thresholds=(0.99,), steps=3)
    windows = 9 + 4  # of a step of the second phase
    assert (rounding["evaluations"], skipping["evaluations"]) == (3 + 3 * windows, 3 + 2 * windows)
    assert rounding["relative_rms"] < 1e-5  # some float32 units in the last place
    assert skipping["relative_rms"] > 100 * rounding["relative_rms"]
    assert skipping["largest_levels"] > skipping["mean_levels"] > 100 * rounding["mean_levels"]

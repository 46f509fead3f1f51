"""Each lever of the training benchmark does what its name says, and leaves the loss as it is."""

from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.build import main as build
from data.cache import main as cache
from scripts.benchmarks.training_levers import (
    ALL,
    FOR_MEMORY,
    NAIVE,
    NAMES,
    Workload,
    kept_for_backward,
)
from tests.fixtures.training import BACKBONE, CONTEXT_DIM, write_base

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
SIZE = 32
ENCODER = {
    **BACKBONE,
    "context_dim": CONTEXT_DIM,
    "num_heads": 2,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "decoder_dropout": 0.0,
    "decoder_attention": "spatial",
    "query_layers": 3,
    "query_ffn_dim": 32,
    "num_global_queries": 1,
    "num_local_queries": 3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, shards and the same with latents."""
    folder = tmp_path_factory.mktemp("levers")
    base, raw, cached = write_base(folder / "base"), folder / "raw", folder / "cached"
    assert build(["world", str(raw), "--count", "16", "--size", str(SIZE), "--samples-per-shard", "4"]) == 0
    assert cache([str(raw), str(cached), "--base", str(base), "--size", str(SIZE), "--device", "cpu"]) == 0
    return base, raw, cached


@pytest.fixture
def work(folders: tuple[Path, Path, Path]) -> Any:
    from scripts.benchmarks.training_levers import Workload

    base, raw, cached = folders
    return Workload("tiny", base, ENCODER, SIZE, (2, 4), raw, cached, torch.device("cpu"), workers=1)


@pytest.fixture
def loops(work: Any) -> Any:
    """Make a loop with the levers of these names; all start from the same weights and are closed in the end."""
    from scripts.benchmarks.training_levers import Levers, Loop

    made: list[Any] = []

    def make(*names: str) -> Any:
        torch.manual_seed(0)
        made.append(Loop(work, replace(Levers(), **dict.fromkeys(names, True))))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


def within_loss(loop: Any, look: Any, steps: int = 1) -> list[Any]:
    """What `look` finds whenever the loss of a step is computed."""
    found: list[Any] = []
    loss = loop.stage.loss
    loop.stage.loss = lambda batch: (found.append(look(batch)), loss(batch))[1]
    loop.turn(steps)
    return found


def test_without_weight_gradients_only_what_is_trained_has_one(loops: Any):
    def graded(loop: Any) -> set[str]:
        """Parts whose weights have gradients when the optimizer steps."""
        parts: set[str] = set()
        step = loop.optimizer.step

        def spy() -> None:
            for name, weight in loop.stage.named_parameters():
                if weight.grad is not None:
                    parts.add("trained" if any(weight is one for one in trained) else name.split(".")[0])
            step()

        trained = [weight for group in loop.optimizer.param_groups for weight in group["params"]]
        loop.optimizer.step = spy
        before = {name: weight.clone() for name, weight in loop.stage.unet.named_parameters()}
        loop.turn(1)
        assert all(torch.equal(weight, before[name]) for name, weight in loop.stage.unet.named_parameters())
        return parts

    assert graded(loops("no_weight_gradients")) == {"trained"}
    assert graded(loops()) == {"trained", "unet"}


def test_cached_latents_are_those_of_the_shards_and_nothing_is_encoded(loops: Any, monkeypatch: pytest.MonkeyPatch):
    import train.stages.seecoder

    plain, cached = loops(), loops("cached")
    seen = within_loss(cached, lambda batch: ("latent_mean" in batch, "latent_std" in batch))
    assert seen == [(True, True)]
    assert within_loss(plain, lambda batch: "latent_mean" in batch) == [False]

    def refuse(*_: Any) -> Any:
        raise AssertionError("encoded")

    monkeypatch.setattr(train.stages.seecoder, "encode_moments", refuse)
    cached.turn(1)
    with pytest.raises(AssertionError, match="encoded"):
        plain.turn(1)


def test_frozen_parts_are_held_in_bfloat16_and_trained_ones_are_not(loops: Any):
    for names, dtype in (((), torch.float32), (("half_frozen",), torch.bfloat16)):
        stage = loops(*names).stage
        for part in (stage.unet, stage.encoder.backbone):
            assert {weight.dtype for weight in part.parameters()} == {dtype}
        assert {weight.dtype for _, weight in stage.trained_parameters() if "unet" not in _} == {torch.float32}
        assert stage.schedule.alphas_cumprod.dtype == torch.float32


def test_autocast_is_on_while_the_loss_is_computed(loops: Any):
    def look(_: Any) -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    assert within_loss(loops("autocast"), look) == [(True, torch.bfloat16)]
    assert within_loss(loops(), look)[0][0] is False
    assert not torch.is_autocast_enabled("cpu")


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_fused_attention_writes_no_weights_out(loops: Any):
    counts = []
    for names in (("fused_attention",), ()):
        loop = loops(*names)
        with Operations() as operations:
            loop.turn(1)
        fused = sum(count for name, count in operations.counts.items() if "flash_attention" in name)
        counts.append((fused, operations.counts["_softmax"] + operations.counts["_safe_softmax"]))
    (fused, none), (nothing, written) = counts
    assert fused > 0
    assert (none, nothing) == (0, 0)
    assert written > 0


def is_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_channels_last_holds_for_frozen_weights_and_what_reaches_them(loops: Any):
    for names, last in ((("channels_last",), True), ((), False)):
        loop = loops(*names)
        for part in (loop.stage.unet, loop.stage.vae):
            # Of 1 x 1 weights the two orders are one and the same.
            wide = [weight for weight in part.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
            assert len(wide) > 5
            assert {is_last(weight) for weight in wide} == {last}
        found: list[bool] = []
        for layer in (loop.stage.unet.conv_in, loop.stage.vae.encoder.conv_in):
            layer.register_forward_pre_hook(lambda _, inputs, found=found: found.append(is_last(inputs[0])))
        loop.turn(1)
        assert found == [last, last]


def test_unet_and_decoder_are_compiled_and_nothing_else(loops: Any):
    for names, expected in ((("compiled",), {"unet", "encoder.decoder"}), ((), set())):
        stage = loops(*names).stage
        found = {name for name, part in stage.named_modules() if part._compiled_call_impl is not None}
        assert found == expected


def test_a_larger_micro_batch_has_the_next_samples_as_well(loops: Any):
    small, large = loops(), loops("large_batch")
    keys = within_loss(small, lambda batch: batch["keys"], steps=2)
    (together,) = within_loss(large, lambda batch: batch["keys"])
    assert (small.batch_size, large.batch_size) == (2, 4)
    assert torch.equal(together, torch.cat(keys))


class Moved:
    """Pixels that note how they travel."""

    def __init__(self):
        self.log: list[Any] = []

    def float(self) -> "Moved":
        self.log.append("to floats first")
        return self

    def to(self, _: Any, non_blocking: bool) -> "Moved":
        self.log.append(non_blocking)
        return self


def test_loading_ahead_reads_in_processes_and_moves_bytes_from_pinned_memory(
    loops: Any, work: Any, monkeypatch: pytest.MonkeyPatch
):
    from scripts.benchmarks import training_levers

    for names, dtype in ((("loading_ahead",), torch.uint8), ((), torch.float32)):
        loop = loops(*names)
        assert within_loss(loop, lambda batch: batch["pixels"].dtype) == [dtype]
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(training_levers, "ShardLoader", lambda *_, **options: asked.append(options))
    found = []
    for device in ("cuda", "cpu"):
        for ahead in (True, False):
            levers = training_levers.Levers(loading_ahead=ahead)
            there = SimpleNamespace(work=replace(work, device=torch.device(device)), levers=levers, batch_size=2)
            training_levers.Loop._make_loader(there)  # type: ignore[arg-type]
            found.append((device, ahead, asked[-1]["pin_memory"], asked[-1]["num_workers"]))
            pixels, zero = Moved(), torch.zeros(2, dtype=torch.int64)
            there.loader = [{"pixels": pixels, "epoch": zero, "sample_id": zero}]
            next(training_levers.Loop._endless(there))  # type: ignore[arg-type]
            assert pixels.log == ([True] if ahead else ["to floats first", False])
    assert found == [
        ("cuda", True, True, 1),
        ("cuda", False, False, 0),
        ("cpu", True, False, 1),
        ("cpu", False, False, 0),
    ]


def test_a_checkpointed_decoder_runs_twice_and_keeps_less(loops: Any):
    runs, kept = [], []
    for names in (("checkpointed",), ()):
        loop = loops(*names)
        count = Counter()
        layer = loop.stage.encoder.decoder.layers[0]
        layer.register_forward_pre_hook(lambda *_, count=count: count.update(["decoder"]))
        loop.turn(1)
        runs.append(count["decoder"])
        kept.append(loop.memory())
    assert runs == [2, 1]
    assert kept[0] < 0.9 * kept[1]


EXACT = 1000 * 2.0**-24  # sums of about a thousand products in another order, in float32
BOUNDS = {
    "no_weight_gradients": 0.0,
    "loading_ahead": 0.0,
    "checkpointed": 0.0,
    "channels_last": EXACT,
    "fused_attention": EXACT,
    "compiled": EXACT,
    "cached": 4 * 2.0**-11,  # half precision of the moments, which the squares of the loss double
    "half_frozen": 0.02,  # bfloat16 has 8 bits
    "autocast": 0.02,
}


def test_every_lever_has_a_bound():
    from scripts.benchmarks.training_levers import Levers

    assert {*BOUNDS, "large_batch"} == {field.name for field in fields(Levers)}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.timeout(900)  # compiling takes minutes on a core that does something else
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "compiled" else []) for name in BOUNDS]
)
def test_the_loss_is_that_of_the_naive_loop(loops: Any, name: str):
    plain, fast = loops(), loops(name)
    plain.turn(1)
    fast.turn(1)
    assert fast.first_loss == pytest.approx(plain.first_loss, rel=BOUNDS[name], abs=0)


def test_the_loss_of_a_larger_micro_batch_is_the_mean_of_the_smaller_ones(loops: Any):
    small, large = loops(), loops("large_batch")
    with torch.no_grad():
        parts = [float(small.stage.loss(next(small.batches))) for _ in range(2)]
        whole = float(large.stage.loss(next(large.batches)))
    assert whole == pytest.approx(sum(parts) / 2, rel=EXACT)
    assert parts[0] != pytest.approx(parts[1], rel=EXACT)


def test_a_turn_counts_pictures(loops: Any, monkeypatch: pytest.MonkeyPatch):
    loop = loops()
    batches: list[Any] = []
    monkeypatch.setattr(loop, "_step", batches.append)
    assert loop.turn(3) > 0
    assert [len(batch["keys"]) for batch in batches] == [2, 2, 2]


def workload(device: str) -> Workload:
    folder = Path("none")
    return Workload("x", folder, {}, 8, (1, 2), folder, folder, torch.device(device), workers=1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_lever_is_measured_alone_and_all_together(device: str):
    rows = workload(device).variants()
    naive = {name for name, on in asdict(rows.pop(NAIVE)).items() if on}
    assert naive == ({"autocast"} if device == "cuda" else set())
    together = {name for name, on in asdict(rows.pop(ALL)).items() if on}
    assert together == set(NAMES) - FOR_MEMORY
    alone = [{name for name, on in asdict(levers).items() if on} - naive for levers in rows.values()]
    assert sorted(map(sorted, alone)) == sorted([name] for name in set(NAMES) - naive)


def test_what_backward_keeps_is_counted_once_and_without_weights():
    weight, inputs = torch.nn.Parameter(torch.ones(3, 5)), torch.ones(7, 3)
    with kept_for_backward({weight.data_ptr()}) as total:
        hidden = inputs @ weight  # keeps `inputs`, 84 bytes, and the weight
        hidden.exp().square().sum().backward()  # keep the one result of `exp`, 140 bytes
    assert sum(total.values()) == 84 + 140

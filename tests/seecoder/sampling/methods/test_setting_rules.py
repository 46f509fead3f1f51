"""Settings that mean nothing are refused where they are made: one line with the method, the name and the value."""

import re
from dataclasses import fields

import numpy as np
import pytest
import torch

from seecoder.sampling import (
    DemoFusion,
    HiDiffusion,
    MultiDiffusion,
    RectifiedHR,
    Region,
    ScaleCrafter,
    SyncDiffusion,
)

NAN = float("nan")
MASK, CONTEXT = torch.ones(2, 2), torch.zeros(1, 5, 8)
BAD = {
    MultiDiffusion: {
        "window": [0, -4, 2.5, "8", (8, 0), (8, 8, 8), True],
        "stride": [0, 1.0, (4,), "half"],
        "jitter": [-1, 0.5, True, "no"],
        "blend": ["foo", None, True],
        "closed_loop": ["false", 1, None],
        "regions": [None, 3, "mask.png", [3]],
        "bootstrap": [2, -0.1, NAN, "20", True, None],
    },
    DemoFusion: {
        "cosine_scale_1": [-1.0, NAN, float("inf"), "3", None],
        "cosine_scale_2": [-1, True],
        "cosine_scale_3": [(1, 2)],
        "blur_sigma": [-0.8, NAN],
        "stride": [0, (1, 2, 3), "64"],
        "jitter": ["false", 16],
        "skip_dead_steps": [1, 2, -1, NAN, "false", None],
        "use_skip_residual": ["no", 0],
        "use_dilated_sampling": [None],
        "windows_see_context": ["false", "true"],
        "use_windows": [1],
        "blur_kernel": ["foo", None],
        "blur_padding": ["circular"],
        "resize_in": ["paper"],
        "num_phases": [0, -1, 2.0, True, "3"],
    },
    RectifiedHR: {
        "switch_at": [(), [], 0.8, "0.8", (1.5,), (0.5, NAN), ("0.8",), (-0.1,)],
        "guidance_boost": [6.0, (0.0,), (-1.0,), (NAN,), "6", ("6",)],
        "resize_in": ["foo"],
    },
    ScaleCrafter: {
        "dilation": [2, "level.1", {"level.1": 0.5}, {"level.1": "2"}, {1: 2.0}, {"mid": (2.0,)}, {"mid": NAN}, True],
        "dilate_tau": [35.0, -0.1, NAN, "1", True],
        "progressive": ["false", 1],
        "damping": [2, {"mid": 0.0}],
        "damp_tau": [7],
        "disperse": [None, 3, [3], {"level.1": 2.0}],
        "disperse_tau": [7, None],
        "dispersion": ["foo"],
        "dispersion_penalty": [-0.1, NAN, "0.1"],
    },
    HiDiffusion: {
        "level": [-1, 0.5, True, "1"],
        "shrink_tau": [7, NAN, "1"],
        "full_shrink_tau": [-0.5],
        "window_attention": ["false", None],
    },
    SyncDiffusion: {
        "window": [0],
        "stride": [-4],
        "closed_loop": ["false"],
        "sync_weight": [-5, NAN, "20"],
        "sync_decay": [-0.5, 1.5],
        "sync_every": [0, 1.5],
        "sync_threshold": [10, -1],
        "anchor": ["last", None, 1.5, True],
        "loss": ["lpips", 3],
        "clamp": ["no"],
    },
}
GOOD = [
    MultiDiffusion(window=[8, 16], stride=(1, 2), jitter=0, bootstrap=1, regions=(Region(MASK, CONTEXT),)),
    DemoFusion(cosine_scale_1=3, skip_dead_steps=0.01, stride=8, num_phases=1, blur_sigma=0),
    RectifiedHR(switch_at=[0.5, 0.7], guidance_boost=[2, 3]),
    ScaleCrafter(dilation={"level.1": 2, "mid": (1, 2.5)}, dilate_tau=1, damping={}, damp_tau=0.5, disperse="mid"),
    HiDiffusion(level=0, shrink_tau=0, full_shrink_tau=1),
    SyncDiffusion(anchor=-1, sync_weight=0, loss=lambda first, second: first),
    DemoFusion(cosine_scale_1=np.float32(3.0), stride=np.int64(8)),
]


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [(method, name, value) for method, named in BAD.items() for name, values in named.items() for value in values],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:20],
)
def test_bad_values_are_refused_in_one_line(method, name, value) -> None:
    shown = re.escape(f"`{name}`={value!r} of {method.__name__}() must be ")
    with pytest.raises(ValueError, match=f"^{shown}[^\n]+\\.$"):
        method(**{name: value})


def test_every_setting_is_checked() -> None:
    for method, named in BAD.items():
        assert list(named) == [field.name for field in fields(method)]


def test_what_is_accepted_stays_as_it_was_given() -> None:
    """Measured tables know a method by its `repr`."""
    assert repr(GOOD[0]).startswith("MultiDiffusion(window=[8, 16], stride=(1, 2), jitter=0, blend='uniform'")
    assert repr(GOOD[4]) == "HiDiffusion(level=0, shrink_tau=0, full_shrink_tau=1, window_attention=True)"
    assert repr(RectifiedHR()) == "RectifiedHR(switch_at=(0.8, 0.9), guidance_boost=None, resize_in='pixels')"


@pytest.mark.parametrize(
    ("mask", "context", "message"),
    [
        (MASK * NAN, CONTEXT, "region's `mask` must be .* values in \\[0, 1\\], .* nan to nan"),
        (MASK * 2, CONTEXT, "region's `mask` must be"),
        (MASK[None], CONTEXT, "region's `mask` must be"),
        (MASK, CONTEXT[0], "region's `context` must be"),
        (MASK, CONTEXT * NAN, "region's `context` must be"),
    ],
)
def test_bad_regions_are_refused(mask, context, message) -> None:
    with pytest.raises(ValueError, match=message):
        Region(mask, context)

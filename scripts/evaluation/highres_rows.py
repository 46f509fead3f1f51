"""The rows of the table of methods above the native size, and of that of panoramas.

Published settings first, then those that were tuned for the world, then the ablations of the papers. Tuned settings
come from other scenes and seeds than the table's, by one rule for each size: the most pictures that are right in
everything, and of equals the smallest distance of the spectra. Where one setting serves all sizes it is the choice for
the largest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.highres import Factor, Row
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion
from seecoder.sampling.methods.perceptual import pyramid_distance

NATIVE: Factor = (1, 1)
SQUARE: tuple[Factor, ...] = ((2, 2), (3, 3), (4, 4))
WIDE: tuple[Factor, ...] = ((1, 2), (1, 4))
ABOVE = SQUARE + WIDE
TWICE: tuple[Factor, ...] = ((2, 2),)
FAR: tuple[Factor, ...] = ((2, 2), (4, 4))
PANORAMA: Factor = (1, 4)
STRIDE = 4  # cells: a quarter of the world's native side
HALF = 8  # half of the world's native side in cells: DemoFusion's stride
BLIND_WINDOWS = DemoFusion(windows_see_context=False, resize_in="pixels", cosine_scale_1=1.0, cosine_scale_2=0.5)


def _row(label: str, *methods: Any, factors: Sequence[Factor] = ABOVE, source: str = "sampled") -> Row:
    return Row(label, methods, source, tuple(factors))


ROWS: tuple[Row, ...] = (
    _row("true renderings", source="rendered", factors=(NATIVE, *ABOVE)),
    _row("true, through the autoencoder", source="reconstructed", factors=(NATIVE, *ABOVE)),
    _row("native samples, enlarged", source="enlarged", factors=SQUARE),
    _row("plain", factors=(NATIVE, *ABOVE)),
    _row("MultiDiffusion", MultiDiffusion(stride=HALF)),
    _row("HiDiffusion", HiDiffusion(level=1)),
    _row("ScaleCrafter", ScaleCrafter()),
    _row("DemoFusion", DemoFusion()),
    _row("DemoFusion, windows without context", BLIND_WINDOWS),
    _row("RectifiedHR", RectifiedHR()),
    _row("ScaleCrafter + MultiDiffusion", ScaleCrafter(), MultiDiffusion(window=24, stride=8), factors=SQUARE[1:2]),
    _row("ScaleCrafter + DemoFusion", ScaleCrafter(), DemoFusion(use_windows=False)),
    _row("ScaleCrafter + RectifiedHR", ScaleCrafter(), RectifiedHR(switch_at=(0.85, 0.95))),
)

ABLATIONS: tuple[Row, ...] = (
    _row("DemoFusion, no skip residual", DemoFusion(use_skip_residual=False), factors=TWICE),
    _row("DemoFusion, no dilated sampling", DemoFusion(use_dilated_sampling=False), factors=TWICE),
    _row("DemoFusion, dilated sampling only", DemoFusion(use_windows=False), factors=TWICE),
    _row("DemoFusion, all steps", DemoFusion(skip_dead_steps=False), factors=TWICE),
    _row("ScaleCrafter + DemoFusion with windows", ScaleCrafter(), DemoFusion(), factors=TWICE),
    _row("ScaleCrafter, 0.6 of the steps", ScaleCrafter(dilate_tau=0.6), factors=TWICE),
    _row("ScaleCrafter, 0.3 of the steps", ScaleCrafter(dilate_tau=0.3), factors=TWICE),
    _row("ScaleCrafter, progressive", ScaleCrafter(progressive=True), factors=((4, 4),)),
    _row("ScaleCrafter, dispersed", ScaleCrafter(disperse=("level.2",), disperse_tau=1.0), factors=FAR),
    _row(
        "ScaleCrafter, dispersed as published",
        ScaleCrafter(disperse=("level.2",), disperse_tau=1.0, dispersion="published"),
        factors=FAR,
    ),
    _row("ScaleCrafter, damped by the plain network", ScaleCrafter(damping={}, damp_tau=0.7), factors=FAR),
    _row("ScaleCrafter, damped", ScaleCrafter(damping={"level.2": 2.0}, damp_tau=0.7), factors=FAR),
    _row("HiDiffusion, all steps", HiDiffusion(level=1, shrink_tau=1.0), factors=TWICE),
    _row("HiDiffusion, all steps, whole attention", HiDiffusion(1, 1.0, window_attention=False), factors=TWICE),
    _row("RectifiedHR, late switches", RectifiedHR(switch_at=(0.85, 0.95)), factors=TWICE),
    _row("RectifiedHR, no guidance boost", RectifiedHR(guidance_boost=(1.0, 1.0)), factors=SQUARE),
)


def _synchronised(weight: float, loss: Any = pyramid_distance) -> SyncDiffusion:
    """A closed loop. The loss needs no weights, whatever is installed: the table has to be the same everywhere."""
    return SyncDiffusion(stride=STRIDE, closed_loop=True, sync_weight=weight, sync_threshold=0.2, loss=loss)


def published_panorama(lpips: Path) -> Row:
    """SyncDiffusion with its published loss and weight, by LPIPS weights that `scripts/convert_lpips.py` wrote."""
    label = "SyncDiffusion, closed loop, weight 20, LPIPS"
    return Row(label, (_synchronised(20.0, lpips),), factors=(PANORAMA,), is_panorama=True)


PANORAMAS: tuple[Row, ...] = tuple(
    Row(label, (method,), factors=(PANORAMA,), is_panorama=True)
    for label, method in (
        ("MultiDiffusion, open", MultiDiffusion(stride=STRIDE)),
        ("MultiDiffusion, closed loop", MultiDiffusion(stride=STRIDE, closed_loop=True)),
        ("SyncDiffusion, closed loop, weight 20", _synchronised(20.0)),  # as published
        ("SyncDiffusion, closed loop, weight 100", _synchronised(100.0)),
        ("SyncDiffusion, closed loop, weight 500", _synchronised(500.0)),
        ("SyncDiffusion, closed loop, weight 2000", _synchronised(2000.0)),
    )
)


def chosen(names: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Rows by name, in the order of the table: of pictures, and of panoramas.

    Args:
        names: Labels in any case; none is the methods alone, "ablations" is those.

    Raises:
        ValueError: A name is unknown.
    """
    if not names:
        return list(ROWS), []
    rows = ROWS + ABLATIONS
    groups = {row.label.lower(): (row,) for row in rows + PANORAMAS} | {"methods": ROWS, "ablations": ABLATIONS}
    wanted: set[str] = set()
    for name in (entry.strip().lower() for entry in names):
        if name not in groups:
            raise ValueError(f"`--rows` {name!r} is unknown; choose from {'; '.join(row.label for row in rows)}.")
        wanted |= {row.label for row in groups[name]}
    return [row for row in rows if row.label in wanted], [row for row in PANORAMAS if row.label in wanted]

"""The rows of the table of methods above the native size.

Published settings first, then those that were tuned for the world, then the ablations of the papers. Tuned settings
come from other scenes and seeds than the table's, by one rule for each size: the most pictures that are right in
everything, and of equals the smallest distance of the spectra. Where one setting serves all sizes it is the choice for
the largest.
"""

from collections.abc import Sequence
from typing import Any

from scripts.evaluation.highres import Factor, Row
from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter

NATIVE: Factor = (1, 1)
SQUARE: tuple[Factor, ...] = ((2, 2), (3, 3), (4, 4))
WIDE: tuple[Factor, ...] = ((1, 2), (1, 4))
ABOVE = SQUARE + WIDE
TWICE: tuple[Factor, ...] = ((2, 2),)
FAR: tuple[Factor, ...] = ((2, 2), (4, 4))
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


def chosen(names: Sequence[str]) -> list[Row]:
    """Rows by name, in the order of the table.

    Args:
        names: Labels in any case; none is the methods alone, "ablations" is those.

    Raises:
        ValueError: A name is unknown.
    """
    if not names:
        return list(ROWS)
    rows = ROWS + ABLATIONS
    known = {row.label.lower() for row in rows}
    groups = {"methods": ROWS, "ablations": ABLATIONS}
    wanted: set[str] = set()
    for name in (entry.strip().lower() for entry in names):
        if name in known:
            wanted.add(name)
        elif name in groups:
            wanted |= {row.label.lower() for row in groups[name]}
        else:
            raise ValueError(f"`--rows` {name!r} is unknown; choose from {'; '.join(row.label for row in rows)}.")
    return [row for row in rows if row.label.lower() in wanted]

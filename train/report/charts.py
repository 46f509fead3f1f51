"""Line charts of a report, drawn by matplotlib and embedded, so that a report is one file that opens anywhere."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_MAX_POINTS = 600  # of a line; more are averaged in groups
# Text stays text and is never read as a formula; the same lines give the same file.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 8}

Line = Sequence[tuple[float, float]]


def line_chart(title: str, lines: Mapping[str, Line], *, logarithmic: bool = False) -> str:
    """Draw lines over the steps of a run.

    Args:
        title: Above the chart.
        lines: (step, value) points by name; values that are not finite, or not positive on a logarithmic axis, are left
            out.
        logarithmic: Of the vertical axis.

    Returns:
        A `<figure>`: the title, which wraps, and the chart as an SVG image. It says so where there is nothing to draw.
    """
    from matplotlib import rc_context  # only who makes a report waits for its import
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that outlives the chart

    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel="step", yscale="log" if logarithmic else "linear")
        axes.grid(color="#ddd")
        for name, line in lines.items():
            points = _averaged([(x, y) for x, y in line if math.isfinite(y) and (y > 0 or not logarithmic)])
            if points:
                axes.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) == 1 else "", label=name)
        if len(axes.lines) > 1:
            axes.legend()
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing recorded yet", ha="center", transform=axes.transAxes)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    address = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    caption = escape(title)
    return f'<figure class="chart"><figcaption>{caption}</figcaption><img alt="{caption}" src="{address}"></figure>'


def _averaged(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until a line has few enough points."""
    size = max(1, -(-len(line) // _MAX_POINTS))
    groups = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]

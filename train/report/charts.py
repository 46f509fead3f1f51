"""Line charts as inline SVG, so that a report is one file that opens anywhere."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f")
_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 28, 40
_MOST_POINTS = 600  # of a line; more are averaged in groups

Line = Sequence[tuple[float, float]]


def line_chart(title: str, lines: Mapping[str, Line], *, logarithmic: bool = False, x_name: str = "step") -> str:
    """Draw lines over a common axis.

    Args:
        title: Above the chart.
        lines: (x, y) points by name; values that are not finite, or not positive on a logarithmic axis, are left out.
        logarithmic: Of the vertical axis.
        x_name: Below the horizontal axis.

    Returns:
        A `<figure>`: the title, which wraps, and an `<svg>` with the lines' names above them. It says so where there is
        nothing to draw.
    """
    kept = {name: _thin(_usable(line, logarithmic)) for name, line in lines.items()}
    kept = {name: line for name, line in kept.items() if line}
    if not kept:
        return _figure(
            title, [f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing recorded yet</text>']
        )
    xs = [x for line in kept.values() for x, _ in line]
    ys = [y for line in kept.values() for _, y in line]
    x_range, y_range = _padded(min(xs), max(xs), 0), _padded(min(ys), max(ys), 0.05)
    parts = _grid(x_range, y_range, logarithmic, x_name)
    for number, line in enumerate(kept.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{_across(x, x_range):.1f},{_up(y, y_range):.1f}" for x, y in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(line) == 1:
            x, y = points.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
    return _figure(title, parts + (_legend(list(kept)) if len(kept) > 1 else []))


def _legend(names: Sequence[str]) -> list[str]:
    """Names side by side above the lines, in their colours."""
    share = (_WIDTH - _LEFT - _RIGHT) / len(names)
    return [
        f'<text x="{_LEFT + share * number:.1f}" y="16" fill="{_COLOURS[number % len(_COLOURS)]}">{escape(name)}</text>'
        for number, name in enumerate(names)
    ]


def _usable(line: Line, logarithmic: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in line if math.isfinite(y) and (y > 0 or not logarithmic)]
    return [(x, math.log10(y)) for x, y in finite] if logarithmic else finite


def _thin(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until a line has few enough points."""
    size = -(-len(line) // _MOST_POINTS)
    if size <= 1:
        return line
    groups = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = share * (high - low)
    if high > low:
        return low - room, high + room
    room = max(abs(low) * 0.1, 1e-9)
    return low - room, high + room


def _across(x: float, limits: tuple[float, float]) -> float:
    return _LEFT + (x - limits[0]) / (limits[1] - limits[0]) * (_WIDTH - _LEFT - _RIGHT)


def _up(y: float, limits: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (y - limits[0]) / (limits[1] - limits[0]) * (_HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most `most` of them."""
    rough = (high - low) / max(1, most - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * power) <= most - 1)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def decades(low: float, high: float, most: int = 6) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten within [low, high]; only the powers where they are too many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [power + math.log10(factor) for power in powers for factor in factors]
        kept = [value for value in found if low <= value <= high]
        if len(kept) <= most:
            break
    return kept[:: -(-len(kept) // most)] if len(kept) > 1 else ticks(low, high, most)


def _grid(x_range: tuple[float, float], y_range: tuple[float, float], logarithmic: bool, x_name: str) -> list[str]:
    parts = []
    for value in decades(*y_range) if logarithmic else ticks(*y_range):
        height = _up(value, y_range)
        label = f"{10**value:.3g}" if logarithmic else f"{value:.4g}"
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(*x_range):
        place = _across(value, x_range)
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:,.10g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    return parts


def _figure(title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{head}{"".join(parts)}</svg></figure>'

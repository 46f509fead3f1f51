"""`python -m train report RUN`: one self-contained page of HTML that shows a run, finished or still going."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from data.hidden_secrets import scrubbed
from seecoder.export.run_folder import BEST, list_checkpoints
from seecoder.weights.atomic import write_text
from train.run.metrics_file import read_metrics

_LEVELS = tuple(f"loss_level_{level}" for level in range(1, 5))
# Title, metrics, logarithmic. What is in none of these gets a chart of its own.
_CHARTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("training loss, weighted (the timestep dominates it: a smooth fall says little)", ("loss",), True),
    ("held-out loss, not weighted", ("held_out_loss", "held_out_loss_no_context"), True),
    ("loss by noise level, not weighted (1: little noise, 4: almost only noise)", _LEVELS, True),
    ("held-out gaps on the same noise (shuffled above zero: the context is used)", ("gap_shuffled", "gap_none"), False),
    ("similarity of a picture's tokens (1: one token, repeated)", ("token_similarity",), False),
    ("gradient norm before clipping", ("gradient_norm",), True),
    ("learning rate", ("learning_rate",), False),
    ("images a second", ("images_per_second",), False),
    ("fraction of time that waits for data", ("data_wait",), False),
    ("skipped optimizer steps and unreadable samples", ("skipped_steps", "skipped_samples"), False),
)
_PREVIEWS = 4  # sheets that are shown: the last, and others evenly before it
_LINES = 20  # of a list of faults
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:1120px;margin:24px auto;padding:0 16px;color:#222}
table{border-collapse:collapse}td,th{padding:2px 10px 2px 0;text-align:left;vertical-align:top}
pre{background:#fafafa;padding:10px;overflow:auto}img{max-width:100%;image-rendering:auto}figure{margin:8px 0}
figure.chart{display:inline-block;width:528px;vertical-align:top}.chart figcaption{font-weight:600;font-size:13px}"""


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page.

    Args:
        folder: A run's folder, with `metrics.csv`.
        out: The file; None for `report.html` in the folder.

    Returns:
        The file.
    """
    out = out or folder / "report.html"
    sections = [*_summary(folder), *_charts(folder), *_previews(folder), *_faults(folder), *_files(folder)]
    title = escape(folder.resolve().name)
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, scrubbed(page))
    return out


def _summary(folder: Path) -> Iterator[str]:
    metrics = read_metrics(folder / "metrics.csv")
    last = max((step for line in metrics.values() for step, _ in line), default=0)
    written = datetime.fromtimestamp((folder / "metrics.csv").stat().st_mtime, UTC)
    rows = {"last recorded step": f"{last:,}", "last written": f"{written:%Y-%m-%d %H:%M} UTC"}
    checkpoints = [f"{path.name} ({path.stat().st_size / 2**20:.0f} MiB)" for _, path in list_checkpoints(folder)]
    rows["checkpoints"] = ", ".join(checkpoints) or "none yet"
    with suppress(OSError, ValueError, LookupError, TypeError):  # an earlier version did not say it
        rows["pictures"] = json.loads((folder / "run.json").read_text())["starts"][-1]["pictures"]
    if (folder / BEST).is_file():
        try:
            best = json.loads((folder / BEST).read_text())
            rows["best checkpoint"] = f"{best['checkpoint']}: {best['metric']} {best['value']:.6g}"
        except (OSError, ValueError, KeyError, TypeError):
            rows["best checkpoint"] = f"{BEST} is damaged; the next checkpoint writes it again"
    yield _table(rows)
    if metrics:
        yield "<h2>Latest figures</h2>"
        yield _table({name: f"{line[-1][1]:.6g} (step {line[-1][0]:,})" for name, line in sorted(metrics.items())})


def _charts(folder: Path) -> Iterator[str]:
    metrics = read_metrics(folder / "metrics.csv")
    yield "<h2>Charts</h2>"
    drawn = set()
    for title, names, logarithmic in _CHARTS:
        drawn |= set(names)
        lines = {name: metrics[name] for name in names if name in metrics}
        if lines:
            yield line_chart(title, lines, logarithmic=logarithmic)
    scores = {name.removeprefix("preview_"): line for name, line in metrics.items() if name.startswith("preview_")}
    if scores:
        yield line_chart("reader's scores on the preview sheets (fraction of pictures that agree)", scores)
    for name in sorted(set(metrics) - drawn - {f"preview_{name}" for name in scores}):
        yield line_chart(name, {name: metrics[name]})


def _previews(folder: Path) -> Iterator[str]:
    sheets = sorted((folder / "previews").glob("step-*.png"))
    if not sheets:
        return
    count = min(_PREVIEWS, len(sheets))
    chosen = sorted({round((index + 1) * len(sheets) / count) - 1 for index in range(count)}, reverse=True)
    yield "<h2>Previews: held-out pictures above their variations</h2>"
    for index in chosen:
        content = base64.b64encode(sheets[index].read_bytes()).decode()
        caption = escape(sheets[index].stem)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{content}">'
        yield f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _faults(folder: Path) -> Iterator[str]:
    for name, title in (("skipped_steps.jsonl", "Skipped steps"), ("unreadable_samples.txt", "Unreadable samples")):
        path = folder / name
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        yield f"<h2>{title}: {len(lines)}</h2>"
        if lines:
            note = f", the last {_LINES}" if len(lines) > _LINES else ""
            yield f"<p>From {name}{note}:</p><pre>{escape(chr(10).join(lines[-_LINES:]))}</pre>"


def _files(folder: Path) -> Iterator[str]:
    """Where the run came from, whole."""
    for name, title in (("run.json", "Commit and versions"), ("config.yaml", "Configuration"), ("README.md", "Card")):
        path = folder / name
        if path.is_file():
            text = escape(path.read_text(encoding="utf-8", errors="replace"))
            yield f"<h2>{title}</h2><details><summary>{name}</summary><pre>{text}</pre></details>"


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows.items())
    return f"<table>{cells}</table>"


_MAX_POINTS = 600  # of a line; more are averaged in groups
# Text stays text and is never read as a formula; the same lines give the same file.
_SVG: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 8,
}

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

    with rc_context(_SVG):
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

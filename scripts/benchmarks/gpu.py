#!/usr/bin/env python
"""The GPU kit: everything that only a GPU can tell, in one command of at most eight minutes.

    scripts/benchmarks/gpu.py --out gpu.json           # on a machine with a CUDA device, from a checkout
    scripts/benchmarks/gpu.py --render gpu.json        # anywhere: put what was measured into this folder's README
    scripts/benchmarks/gpu.py --smoke --out toy.json   # all of it at toy size on the CPU, as the tests do

Parts, in this order: the tests marked `gpu`; a training at Stable Diffusion 1.5's shapes; sampling at SDXL's shapes,
2048 and 4096 pixels; the encoder; the decoder. All weights are random, nothing is downloaded. Each part is a process of
its own with a budget of seconds: one that fails, hangs or runs out of memory costs the others nothing, and what it had
measured until then counts. Results are written after each part. Exits with 1 if a goal is missed or a part failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.threads import wait_passively

wait_passively()  # before torch is imported

from scripts.benchmarks.goals import Verdict, exit_code, memory_verdicts, training_verdicts
from scripts.results import markdown, versions, write_json
from seecoder.weights.atomic import write_text

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = {"tests": 80, "training": 160, "sampling": 150, "encoder": 40, "decoder": 40}  # seconds: 7 min 50 s in all
README = ROOT / "scripts" / "benchmarks" / "README.md"
BEGIN, END = "<!-- gpu.py --render writes from here -->", "<!-- to here -->"
NOT_MEASURED = "not measured"
COLUMNS = {
    "tests": ("passed", "failed", "skipped"),
    "training": ("loop", "batch", "images_per_second", "mfu", "peak_gib", "first_step_seconds"),
    "sampling": (
        "method",
        "pixels",
        "evaluations",
        "published_evaluations",
        "seconds",
        "published_seconds",
        "peak_gib",
    ),
    "encoder": ("batch", "milliseconds", "images_per_second", "peak_gib"),
    "decoder": ("pixels", "seconds", "peak_gib", "notes"),
}


def run_part(name: str, seconds: float) -> dict[str, Any]:
    """Run one part in a process of its own.

    Args:
        name: One of `BUDGETS`.
        seconds: The process is killed after so long.

    Returns:
        `rows` and whatever else the part noted until it ended, `took` in seconds, and `problem` if it did not end well.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "found.json"
        command = [sys.executable, "-m", "scripts.benchmarks.gpu_parts", name, str(notes)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HF_HUB_OFFLINE": "1"}
        problem = None
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=seconds, stdout=sys.stderr, check=False
            ).returncode
            problem = f"ended with code {done}" if done else None
        except subprocess.TimeoutExpired:
            problem = f"stopped after its budget of {seconds:g} s"
        found: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {"rows": []}
    found["took"] = round(time.perf_counter() - started, 1)
    return found | ({"problem": problem} if problem else {})


def toy_part(name: str) -> dict[str, Any]:
    """Run one part at toy size on the CPU, in this process and for as long as it takes."""
    from scripts.benchmarks.gpu_parts import PARTS, Findings

    with tempfile.TemporaryDirectory() as folder:
        findings = Findings(Path(folder) / "found.json", smoke=True)
        PARTS[name](findings)
    return findings.found


def verdicts(parts: Mapping[str, Any]) -> list[Verdict]:
    """Whether what was measured meets the goals."""
    training, found = parts.get("training", {}), []
    if training.get("head"):
        fast = next((row for row in training["rows"] if row["loop"] == "all levers for speed"), None)
        found += training_verdicts(training["head"], fast)
    return found + list(memory_verdicts(parts.get("sampling", {}).get("rows", [])))


def report(result: Mapping[str, Any]) -> str:
    """Tables of all parts as Markdown, and the verdicts; what was not measured says so."""
    about = result.get("about", {})
    lines = [
        ", ".join(f"{name} {value}" for name, value in about.items()) or f"No GPU was at hand: {NOT_MEASURED}.",
        "",
    ]
    for name, columns in COLUMNS.items():
        part = result.get("parts", {}).get(name, {})
        rows = part.get("rows") or [dict.fromkeys(columns, NOT_MEASURED)]
        problem = f"; {part['problem']}" if "problem" in part else ""
        took = f" ({part['took']:g} s{problem})" if "took" in part else ""
        lines += [f"**{name}**{took}", "", markdown(rows, columns), ""]
        lines += [f"{key}: {value}" for key, value in part.get("notes", {}).items()] + [""]
    found = [str(verdict) for verdict in verdicts(result.get("parts", {}))]
    return "\n".join([*lines, *(f"- {verdict}" for verdict in found or [f"Goals: {NOT_MEASURED}."])])


def render(result: Mapping[str, Any], readme: Path) -> None:
    """Put the report between the two marks of a README.

    Raises:
        ValueError: The file has no such marks.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"`readme`={readme} must have the lines {BEGIN!r} and {END!r} once each.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, f"{before}{BEGIN}\n{report(result)}\n{END}{after}")


def measure(out: Path, parts: list[str], smoke: bool) -> int:
    """Run the parts one after the other, and write what is known after each."""
    import torch

    about = versions("torch", "diffusers", "timm", "lightning")
    about["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    result: dict[str, Any] = {"about": about, "smoke": smoke, "parts": {}}
    for name in parts:
        print(f"{name}: at most {BUDGETS[name]} s ...", file=sys.stderr, flush=True)
        result["parts"][name] = toy_part(name) if smoke else run_part(name, BUDGETS[name])
        result["verdicts"] = [str(verdict) for verdict in verdicts(result["parts"])]
        write_json(out, result)
    print(report(result))
    problems = [name for name, part in result["parts"].items() if "problem" in part]
    return 1 if problems else exit_code(verdicts(result["parts"]))


def main() -> int:
    """Measure or render; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="JSON file (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), help="(default: all)")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--render", type=Path, metavar="JSON", help="only write such a file's tables into the README")
    options = parser.parse_args()
    if options.render is not None:
        render(json.loads(options.render.read_text()), README)
        return 0
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA device here; `--smoke` runs everything at toy size.", file=sys.stderr)
        return 2
    return measure(options.out, options.parts, options.smoke)


if __name__ == "__main__":
    sys.exit(main())

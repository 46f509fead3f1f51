#!/usr/bin/env python3
"""Feed damaged pictures to `load_image`: each must give a picture or an ImageError, in bounded time and memory.

    tests/fuzzing/fuzz_images.py                       2,000 files of each format, a minute or two
    tests/fuzzing/fuzz_images.py --count 50000 --seed 7 --keep /tmp/findings

A case is a function of (seed, format, number) alone. The files are decoded in a child process with a limit on its
address space and on the processor time of each case, so that a crash, a hang or an allocation of gigabytes ends the
child and not the search. Exits with 1 if there was any such finding.

The limit on pixels is lower here than that of `load_image`: a healthy picture of 64 million pixels takes two or three
seconds by itself, and would hide what damage costs. Raise it together with `--seconds`.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seecoder.images.gate import ImageError, load_image
from tests.fuzzing.damaged_images import FORMATS, make_case, seeds

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the search, or, as the child, a part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files of each format (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time for a file (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=2048, help="MiB to use in decoding (default: %(default)s)")
    parser.add_argument("--max-pixels", type=int, default=16_000_000, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--child-from", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return child(arguments) if arguments.child_from is not None else search(arguments)


# The parent: keeps a child running, collects what it says, survives what kills it.


def search(arguments: argparse.Namespace) -> int:
    """Run children until all cases are done."""
    total = arguments.count * len(arguments.formats)
    results: list[dict] = []
    baseline = 0
    while len(results) < total:
        command = [sys.executable, __file__, *sys.argv[1:], "--child-from", str(len(results))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "baseline" in message:
                    baseline = message["baseline"]
                else:
                    results.append(message)
        if len(results) < total:
            if not baseline:
                raise SystemExit("the child ended before its first case; run it with --child-from 0 to see why")
            ended = {"outcome": f"the child ended with {process.returncode}", "seconds": 0.0, "peak": 0}
            results.append(ended)
    return report(arguments, results, baseline)


def report(arguments: argparse.Namespace, results: list[dict], baseline: int) -> int:
    """Print the table and return the exit status."""
    rows, findings = [], []
    for place, format in enumerate(arguments.formats):
        part = results[place * arguments.count : (place + 1) * arguments.count]
        outcomes = Counter(result["outcome"] for result in part)
        bad = [(case, result) for case, result in enumerate(part) if is_finding(result, arguments.seconds)]
        findings += [(format, case, result) for case, result in bad]
        rows.append(
            {
                "format": format,
                "files": len(part),
                "pictures": outcomes["picture"],
                "image_errors": outcomes["ImageError"],
                "findings": len(bad),
                "slowest_seconds": round(max(result["seconds"] for result in part), 3),
                "peak_mib": round((max(result["peak"] for result in part) - baseline) / 2**20),
            }
        )
    if arguments.json:
        print(json.dumps({"rows": rows, "findings": [[*finding[:2], finding[2]["outcome"]] for finding in findings]}))
    else:
        print("format    files  pictures  ImageErrors  findings  slowest (s)  peak above start (MiB, so far)")
        for row in rows:
            print("{format:6s} {files:8d} {pictures:9d} {image_errors:12d} {findings:9d}".format(**row), end=" ")
            print("{slowest_seconds:12.3f} {peak_mib:10d}".format(**row))
    for format, case, result in findings:
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{format}-{arguments.seed}-{case}").write_bytes(make_case(format, arguments.seed, case))
        print(f"finding: {format} {case}: {result['outcome']}, {result['seconds']:.3f} s", file=sys.stderr)
    return 1 if findings else 0


def is_finding(result: dict, seconds: float) -> bool:
    """Anything but a picture or an ImageError within the time."""
    return result["outcome"] not in ("picture", "ImageError") or result["seconds"] > seconds


# The child: decodes, and says one line a case.


def child(arguments: argparse.Namespace) -> int:
    """Decode the cases from `--child-from` on."""
    for format in arguments.formats:  # what every case needs is loaded before memory is measured and limited
        load_image(seeds(format)[0])
    if sys.platform == "linux":  # elsewhere there is no telling how much address space is taken already
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + arguments.memory * 2**20,) * 2)
    write_line({"baseline": peak_bytes()})
    for number in range(arguments.child_from, arguments.count * len(arguments.formats)):
        data = make_case(arguments.formats[number // arguments.count], arguments.seed, number % arguments.count)
        # The default action of this signal ends the process, in C code too, which no Python handler could do.
        signal.setitimer(signal.ITIMER_VIRTUAL, 5 * arguments.seconds)
        start = time.process_time()
        try:
            pixels = load_image(data, max_pixels=arguments.max_pixels)
            good = pixels.ndim == 3 and pixels.shape[0] == 3 and bool((pixels >= 0).all() and (pixels <= 1).all())
            outcome = "picture" if good else f"a picture of {tuple(pixels.shape)} out of range"
            del pixels
        except ImageError as error:
            clear = str(error).isprintable() and error.reason and len(str(error)) < 500
            outcome = "ImageError" if clear else f"an ImageError that is no clear line: {error!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        write_line({"outcome": outcome, "seconds": seconds, "peak": peak_bytes()})
    return 0


def write_line(message: dict) -> None:
    """One line to the parent, at once: the next case may be the last."""
    print(json.dumps(message), flush=True)


def peak_bytes() -> int:
    """Largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())

"""What it costs that idle threads sleep, and what it saves beside another program, for one call of the world's UNet.

python -m tests.behaviour.waiting_threads     # prints the table of scripts/benchmarks/README.md, in a minute

The two policies take turns, so that what else the machine does falls on both.
"""

import os
import statistics
import subprocess
import sys
import time

ROUNDS, CALLS = 3, 15
_BUSY = "while True: pass"


def timed_calls() -> None:
    """Print the median milliseconds of a call with 2 and with 16 rows, on two threads."""
    import torch

    from data.world.conditioner import BASE
    from seecoder.base_model.loading import load_part

    torch.set_num_threads(2)
    unet = load_part(BASE, "unet")
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    found = []
    for rows in (2, 16):
        inputs = torch.randn(rows, unet.config.in_channels, side, side), 10, torch.randn(rows, 20, width)
        times = []
        with torch.no_grad():
            for _ in range(CALLS):
                start = time.perf_counter()
                unet(*inputs)
                times.append(time.perf_counter() - start)
        found.append(1e3 * statistics.median(times[3:]))
    print(*found)


def milliseconds(policy: str) -> list[float]:
    """Time the calls in a process of its own, in which threads wait as `policy` says."""
    command = [sys.executable, "-c", "from tests.behaviour.waiting_threads import timed_calls; timed_calls()"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_WAIT_POLICY": policy}, capture_output=True, text=True, check=True
    )
    return [float(value) for value in done.stdout.split()]


def main() -> None:
    """Print the table."""
    print("| | 2 rows | 16 rows |\n|---|---|---|")
    for name, programs in (("nothing else runs", 0), ("a program on one of the cores", 1)):
        busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(programs)]
        try:
            rounds = [[milliseconds(policy) for policy in ("PASSIVE", "ACTIVE")] for _ in range(ROUNDS)]
        finally:
            for process in busy:
                process.kill()
        cells = []
        for place in range(2):
            asleep, spinning = (statistics.median(one[policy][place] for one in rounds) for policy in range(2))
            cells.append(f"{asleep:.0f} / {spinning:.0f}")
        print(f"| {name}: asleep / spinning | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""How idle threads wait: asleep, and not spinning.

OpenMP's threads wait for each other in a loop that burns its core, and the program that the core would rather run is
held up by it, often one of those very threads. Asleep they hold nothing up, and cost little on an idle machine:
`scripts/benchmarks/README.md` says how much. The commands and scripts call this before torch is imported, which is when
OpenMP reads it; the library does not: what a program's threads do is its own to decide. Processes that they start
inherit it.
"""

import os

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # the standard's, GNU's, Intel's and LLVM's


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose how they wait."""
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

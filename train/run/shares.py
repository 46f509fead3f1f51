"""What each process knows of a line of the log, and the line that all of them make together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import distributed


@dataclass(frozen=True)
class Share:
    """What one process knows.

    Attributes:
        waited: Seconds since the last line that went into waiting for data.
        alone: Those and the forward passes: what a process does without waiting for the others.
        skipped: Samples that it could not read since it started.
        records: Sum and count of each recorded figure since the last line.
    """

    waited: float = 0.0
    alone: float = 0.0
    skipped: int = 0
    records: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def gather(own: Share, processes: int) -> list[Share]:
    """Shares of all processes, by rank; each of them has to call this."""
    if processes == 1:
        return [own]
    found: list[Any] = [None] * processes
    distributed.all_gather_object(found, own)  # no tensor: a loss level may be drawn in some processes only
    return found


def means(shares: Sequence[Share]) -> dict[str, float]:
    """Mean of each recorded figure over the processes that recorded it, each as often as it did."""
    names = dict.fromkeys(name for share in shares for name in share.records)
    found = {name: [share.records[name] for share in shares if name in share.records] for name in names}
    return {
        name: sum(total for total, _ in records) / sum(count for _, count in records) for name, records in found.items()
    }


def slowest(shares: Sequence[Share]) -> dict[str, float]:
    """Which process took longest to read and to compute its losses, and how many times the mean of the others.

    The others wait for it in the exchange of gradients, so that steps take equally long everywhere. On a GPU the losses
    are computed in the background, and this shows reading alone.
    """
    if len(shares) == 1:
        return {}
    times = [share.alone for share in shares]
    last = times.index(max(times))
    others = (sum(times) - times[last]) / (len(times) - 1)
    return {"slowest_process": float(last), "slowest_process_times": times[last] / max(others, 1e-9)}

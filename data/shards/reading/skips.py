"""What could not be read: counted by reason, named once, logged sparingly, and a reason to stop if it is too much."""

import json
import logging
import re
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.shards.locks import locked
from seecoder.checks import check, number

logger = logging.getLogger(__name__)

LOG_EVERY = 1000
RECENT = 10_000  # samples over which the rate is taken, so that a long good past does not hide a dead disk
MIN_SEEN = 1000  # a rate over fewer samples than this says little; it is taken as if there had been this many
_MOST_NAMES, _MOST_SHOWN = 1_000_000, 10
_QUOTED = re.compile(r"""(?<!\w)b?(["'])(?:\\.|(?!\1).)*\1(?!\w)""")  # as Python shows bytes and texts of a file


def reason_category(reason: str) -> str:
    """Cut a reason down to what can be counted: no quotations, no numbers, nothing after `:`, `;` or `(`."""
    return re.sub(r"\d[\d,.]*", "N", re.split(r"[:;(]", _QUOTED.sub("...", reason), maxsplit=1)[0]).strip()[:80]


class TooManySkipped(RuntimeError, ValueError):
    """More samples could not be read, or cannot be read, than is tolerated."""


class NoReadableSample(RuntimeError):
    """Not one of many samples could be read: the shards are gone, or of another kind."""


class Skip(NamedTuple):
    """One sample that could not be read, or what was passed over in a folder before the first sample was asked for.

    Attributes:
        sample_id: Its number in the manifest's order; of what is passed over 0 if its samples are in that order, -1
            if they are not.
        reason: Category, for counting ("truncated shard", "picture: not an image").
        name: What is at fault, for naming: the shard where all of it from somewhere on is lost, else the sample.
        detail: One line with the particulars.
        samples: How many samples are lost by it; 0 where it is only said.
    """

    sample_id: int
    reason: str
    name: str
    detail: str
    samples: int = 1


def check_passed(
    passed: Sequence[Skip], samples: int, ceiling: float, report: Path | None = None, *, log: bool = True
) -> None:
    """Say what is odd or was passed over in folders, and refuse to go on where too much is lost by it.

    Args:
        passed: What was passed over.
        samples: Samples in the manifest's order.
        ceiling: Largest tolerated fraction of lost samples, in [0, 1].
        report: File to which each is appended, as by `SkipLog`.
        log: Say it; False where a later call with the same folders does.

    Raises:
        TooManySkipped: More are lost.
    """
    if report is not None and passed:
        _append(report, passed)
    for reason in dict.fromkeys(skip.reason for skip in passed if log):
        alike = [skip.detail for skip in passed if skip.reason == reason]
        logger.warning("found in the data: %d x %s: %s", len(alike), reason, "; ".join(alike[:_MOST_SHOWN]))
    lost = sum(skip.samples for skip in passed)
    samples += sum(skip.samples for skip in passed if skip.sample_id < 0)
    if lost > ceiling * samples:
        named = "; ".join([skip.detail for skip in passed if skip.samples][:_MOST_SHOWN])
        raise TooManySkipped(
            f"{lost:,} of {samples:,} samples could not be read, above the ceiling of {ceiling:.2%}: {named}. Repair "
            "the data, or raise the ceiling."
        )


class SkipLog:
    """Counts skipped samples in the main process, whichever worker met them.

    Args:
        ceiling: Largest tolerated fraction of skipped samples among the last `RECENT`, in [0, 1].
        report: File to which every named fault is appended as a line of JSON, unless another process or an earlier
            start has named it there already; None keeps the log only.

    Attributes:
        counts: Skipped samples by reason.
        seen: Samples asked for, skipped ones among them.
        names: What was at fault, each once, in order of first meeting, with its reason.

    Raises:
        ValueError: `ceiling` is outside [0, 1].
    """

    def __init__(self, ceiling: float = 0.01, report: str | Path | None = None) -> None:
        self.ceiling = ceiling
        check(self, ceiling=number(0, 1))
        self.report = Path(report) if report is not None else None
        self.counts: Counter[str] = Counter()
        self.seen = 0
        self.names: dict[str, str] = {}
        self._recent: deque[tuple[int, int]] = deque()
        self._recent_seen = self._recent_skipped = 0

    @property
    def skipped(self) -> int:
        """Skipped samples of all reasons."""
        return self.counts.total()

    def add(self, seen: int, skips: Sequence[Skip]) -> None:
        """Take in one batch.

        Args:
            seen: Samples that the batch asked for.
            skips: Those that could not be read.

        Raises:
            TooManySkipped: The fraction of skipped samples is above the ceiling.
        """
        self.seen += seen
        new = [skip for skip in skips if self._is_new(skip)]
        for skip in skips:
            self.counts[skip.reason] += 1
            count = self.counts[skip.reason]
            if count == 1 or count % LOG_EVERY == 0:
                logger.warning("skipped sample %d: %s (%s; number %d of its kind)", *skip[:2], skip.detail, count)
        if new and self.report is not None:
            _append(self.report, new)
        self._check_rate(seen, len(skips))

    def _is_new(self, skip: Skip) -> bool:
        if skip.name in self.names or len(self.names) >= _MOST_NAMES:
            return False
        self.names[skip.name] = skip.reason
        return True

    def _check_rate(self, seen: int, skipped: int) -> None:
        self._recent.append((seen, skipped))
        self._recent_seen += seen
        self._recent_skipped += skipped
        while self._recent_seen - self._recent[0][0] >= RECENT:
            old_seen, old_skipped = self._recent.popleft()
            self._recent_seen -= old_seen
            self._recent_skipped -= old_skipped
        if self._recent_skipped > self.ceiling * max(self._recent_seen, MIN_SEEN):
            raise TooManySkipped(
                f"{self._recent_skipped} of the last {self._recent_seen} samples could not be read, above the ceiling "
                f"of {self.ceiling:.2%} (of at least {MIN_SEEN}). In all: {self.summary()}. Repair the data, or raise "
                "the ceiling."
            )

    def summary(self) -> str:
        """Say it in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{self.skipped} of {self.seen} samples skipped" + (f" ({reasons})" if reasons else "")


def _append(report: Path, skips: Sequence[Skip]) -> None:
    """Name faults that no other process of the run has named; a full disk costs the lines, not the run."""
    try:
        with locked(report.with_name(f".{report.name}.lock")), report.open("a+", encoding="utf-8") as file:
            file.seek(0)
            known = {_name_of(line) for line in file}
            file.writelines(json.dumps(skip._asdict()) + "\n" for skip in skips if skip.name not in known)
    except OSError as error:
        logger.warning("%d faults are not in %s: %s", len(skips), report, error)


def _name_of(line: str) -> str | None:
    try:
        return json.loads(line)["name"]
    except (json.JSONDecodeError, KeyError, TypeError):  # half a line
        return None

"""Losses are counted by reason, named once, logged sparingly, and stop the run above the ceiling."""

import json
import logging
from pathlib import Path

import pytest

from data.shards.reading.skips import (
    LOG_EVERY,
    MIN_SEEN,
    RECENT,
    Skip,
    SkipLog,
    TooManySkipped,
    check_passed,
    reason_category,
)


def skips(count: int, reason: str = "bad", start: int = 0) -> list[Skip]:
    return [
        Skip(number, reason, f"a.tar[{number}]", f"a.tar[{number}]: {reason}") for number in range(start, start + count)
    ]


def test_counts_and_names(tmp_path: Path):
    log = SkipLog(1.0, tmp_path / "skipped.jsonl")
    for _ in range(2):  # two epochs: counted twice, named once
        log.add(10, skips(3))
        log.add(10, [Skip(number, "cut", "b.tar", "b.tar: 5 of 9 samples are lost") for number in range(4, 9)])
    assert log.counts == {"bad": 6, "cut": 10}
    assert (log.seen, log.skipped) == (40, 16)
    assert log.names == {"a.tar[0]": "bad", "a.tar[1]": "bad", "a.tar[2]": "bad", "b.tar": "cut"}
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == list(log.names)
    assert log.summary() == "16 of 40 samples skipped (10 cut, 6 bad)"


def test_log_shows_the_first_and_every_thousandth_of_each_kind(caplog: pytest.LogCaptureFixture):
    log = SkipLog(1.0)
    with caplog.at_level(logging.WARNING):
        for start in range(0, 2500, 100):
            log.add(200, [*skips(100, "bad", start), *skips(1, "rare", start)])
    numbers = [record.args[-1] for record in caplog.records if record.args and record.args[1] == "bad"]
    assert numbers == [1, LOG_EVERY, 2 * LOG_EVERY]
    assert sum(record.args[1] == "rare" for record in caplog.records if record.args) == 1


def test_ceiling_stops_with_numbers():
    log = SkipLog(0.01)
    log.add(MIN_SEEN, skips(MIN_SEEN // 100))  # exactly at the ceiling
    with pytest.raises(RuntimeError, match=r"11 of the last 1001 samples.*ceiling of 1\.00%.*11 bad"):
        log.add(1, skips(1))


def test_few_samples_are_judged_as_if_they_were_many():
    SkipLog(0.01).add(10, skips(10))  # ten of ten, but one in a hundred of a thousand
    with pytest.raises(RuntimeError, match="11 of the last 11"):
        SkipLog(0.01).add(11, skips(11))
    with pytest.raises(RuntimeError, match="1 of the last 5"):
        SkipLog(0.0).add(5, skips(1))


def test_a_long_good_past_does_not_hide_a_dead_disk():
    log = SkipLog(0.01)
    for _ in range(100):
        log.add(RECENT // 10, [])
    log.add(RECENT // 100, skips(RECENT // 100))
    with pytest.raises(RuntimeError, match="102 of the last 10102"):
        log.add(2, skips(2))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("the file is truncated: 1,024 of 5,000 bytes are there", "the file is truncated"),
        ("it has 81,000,000 pixels (9,000 x 9,000); the limit", "it has N pixels"),
        ("bad json", "bad json"),
        ("the first bytes, b'GI(:;7\\'', are those of no (x)", "the first bytes, ..., are those of no"),
        ('the first bytes, b"\'(\\x00", are those of no (x)', "the first bytes, ..., are those of no"),
        ("its sha256 is not the manifest's, nor the shard's", "its shaN is not the manifest's, nor the shard's"),
        ("x" * 500, "x" * 80),
    ],
)
def test_reasons_are_cut_down_to_categories(reason: str, expected: str):
    assert reason_category(reason) == expected


def test_ceiling_is_a_share():
    with pytest.raises(ValueError, match="`ceiling`=5"):
        SkipLog(5)


def test_processes_and_starts_name_each_fault_once(tmp_path: Path):
    report = tmp_path / "unreadable.txt"
    faults = [Skip(number, "picture", f"shard-{number}", "not an image") for number in range(3)]
    first, second = SkipLog(1.0, report), SkipLog(1.0, report)
    first.add(4, faults[:2])
    second.add(4, faults[1:])
    SkipLog(1.0, report).add(8, faults)  # after a restart
    named = [json.loads(line)["name"] for line in report.read_text().splitlines()]
    assert named == ["shard-0", "shard-1", "shard-2"]
    assert (first.skipped, second.skipped) == (2, 2)


def test_a_full_disk_costs_the_names_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "no folder").write_text("so that nothing can be written below it")
    log = SkipLog(1.0, tmp_path / "no folder" / "unreadable.txt")
    log.add(4, [Skip(0, "picture", "shard-0", "not an image")])
    assert log.skipped == 1
    assert "1 faults are not in" in caplog.text


def test_what_is_passed_over_is_said_by_reason_reported_and_held_against_the_ceiling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    passed = [
        Skip(-1, "empty", "a.tar", "`a.tar`: empty", 3),
        Skip(-1, "hidden", "._a.tar", "`._a.tar`", 0),
        Skip(0, "empty", "b.tar", "`b.tar`: empty", 2),
    ]
    check_passed(passed, 95, 0.06, tmp_path / "report.txt")
    assert "found in the data: 2 x empty: `a.tar`: empty; `b.tar`: empty" in caplog.text
    assert [json.loads(line)["name"] for line in (tmp_path / "report.txt").read_text().splitlines()] == [
        skip.name for skip in passed
    ]
    with pytest.raises(TooManySkipped, match=r"5 of 98 samples could.*ceiling of 5\.00%: `a\.tar`"):
        check_passed(passed, 95, 0.05)
    caplog.clear()
    with pytest.raises(TooManySkipped, match=r"5 of 98"):
        check_passed(passed, 95, 0.05, log=False)
    assert not caplog.text

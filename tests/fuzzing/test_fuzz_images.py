"""Damage at random; the long run is `tests/fuzzing/fuzz_images.py`."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing.damaged_images import FORMATS
from tests.fuzzing.fuzz_images import is_finding

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs limits on the address space")
def test_a_thousand_damaged_files_give_a_picture_or_an_image_error():
    script = ROOT / "tests" / "fuzzing" / "fuzz_images.py"
    command = [sys.executable, str(script), "--count", "130", "--seed", "1", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    figures = json.loads(finished.stdout)
    assert not figures["findings"], finished.stderr
    assert finished.returncode == 0
    assert [row["format"] for row in figures["rows"]] == list(FORMATS)
    for row in figures["rows"]:
        assert row["pictures"] + row["image_errors"] == row["files"] == 130
        assert row["pictures"] >= 5, "damage so heavy that nothing is decoded tests nothing"
        assert row["peak_mib"] < 1500


@pytest.mark.parametrize(
    ("outcome", "seconds", "finding"),
    [("picture", 0.1, False), ("ImageError", 0.1, False), ("picture", 2.1, True), ("IndexError: 3", 0.1, True)],
)
def test_anything_but_a_picture_or_an_image_error_in_time_is_a_finding(outcome, seconds, finding):
    assert is_finding({"outcome": outcome, "seconds": seconds}, 2.0) == finding

"""READMEs stay short at the top, and name files that exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(
    ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_top_readme_is_one_that_is_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("path", READMES, ids=name)
def test_links_lead_somewhere(path: Path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    gone = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert gone == []


@pytest.mark.parametrize("path", READMES, ids=name)
def test_programs_that_are_named_exist(path: Path):
    named = re.findall(r"(?<![\w/.])((?:scripts|configs|tests)/[\w./-]+\.(?:py|yaml|json|sbatch))", path.read_text())
    assert [target for target in named if not (ROOT / target).exists() and "a/b" not in target] == []
    modules = re.findall(r"python -m ((?:train|data|tests|scripts)[\w.]*)", path.read_text())
    assert [one for one in modules if not list(ROOT.glob(one.replace(".", "/") + "*"))] == []

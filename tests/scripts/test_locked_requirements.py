"""The lock agrees with pyproject.toml and with the constraints, and holds a hash of everything that is installed."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "locked_requirements.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = sorted(set(PROJECT["project"]["optional-dependencies"]) - {"all"})


@pytest.fixture(scope="module")
def locked() -> ModuleType:
    spec = importlib.util.spec_from_file_location("locked_requirements", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def pins(text: str) -> dict[str, tuple[Version, Marker | None]]:
    """Version and marker by name, of a lock or a list of constraints."""
    found = {}
    for line in re.findall(r"^[A-Za-z0-9][^\\\n]*", text, re.MULTILINE):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = (Version(specifier.version), requirement.marker)
    return found


@pytest.fixture(scope="module")
def lock() -> dict[str, tuple[Version, Marker | None]]:
    return pins((ROOT / "scripts" / "requirements.lock").read_text())


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, with all extras, for development and for building."""
    project = PROJECT["project"]
    rows = project["dependencies"] + PROJECT["dependency-groups"]["dev"] + PROJECT["build-system"]["requires"]
    rows += [row for extra in EXTRAS for row in project["optional-dependencies"][extra]]
    return [Requirement(row) for row in rows]


def test_what_pyproject_asks_for_is_locked_in_a_version_that_it_accepts(lock):
    for requirement in asked():
        version, marker = lock[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), requirement
        assert marker is None, f"{requirement} would be missing on some platforms"


def test_the_constraints_and_the_lock_name_the_same_versions(lock):
    constraints = pins((ROOT / "scripts" / "constraints.txt").read_text())
    different = {name for name in lock.keys() & constraints.keys() if lock[name][0] != constraints[name][0]}
    assert not different
    here = {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.11.7"}
    needed = {name for name, (_, marker) in lock.items() if marker is None or marker.evaluate(here)}
    assert needed <= constraints.keys(), "the constraints would leave these open"


def test_releases_that_were_withdrawn_are_refused(lock):
    (lightning,) = (requirement for requirement in asked() if requirement.name == "lightning")
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))
    assert lightning.specifier.contains(lock["lightning"][0])


def test_everything_has_a_hash_and_no_address(locked: ModuleType):
    text = (ROOT / "scripts" / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    entries = locked.read_lock(text)
    assert len(entries) > 100
    for name, entry in entries.items():
        first, *hashes = entry.text.replace("\\\n", "\n").splitlines()
        assert re.match(rf"{name}==\S+( ;.*)?$", re.sub(r"^\S+?(?===)", name, first.strip())), first
        assert hashes, name
        assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", row) for row in hashes), name
        assert entry.via, name


@pytest.mark.parametrize("extras", [[], *([extra] for extra in EXTRAS), ["train", "onnx", "app", "deepspeed"]])
def test_what_is_selected_is_complete(locked: ModuleType, extras: list[str]):
    # Compared with what the installed packages say of themselves: a gap would only show in a fresh environment.
    selected = set(locked.read_lock("\n" + locked.select(extras)))
    waiting, seen = list(selected), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            rows = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another extra or platform
        for requirement in map(Requirement, rows):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert locked.plain(requirement.name) in selected, f"{name} needs {requirement}"
    assert len(seen) == len(selected)


def test_extras_select_parts(locked: ModuleType):
    every = set(locked.read_lock(locked.LOCK.read_text()))
    assert set(locked.read_lock("\n" + locked.select(["all"]))) | {"setuptools"} == every
    train = set(locked.read_lock("\n" + locked.select(["train"])))
    assert {"lightning", "webdataset", "torch", "pytest", "ruff"} <= train
    assert not {"gradio", "deepspeed", "onnx"} & train
    assert set(locked.read_lock("\n" + locked.select(["build"]))) == {"setuptools"}


@pytest.mark.parametrize(("argument", "code", "message"), [("nope", 2, "there is no `nope`; all, app,"), ("", 0, "")])
def test_bad_extras_are_one_line(argument: str, code: int, message: str):
    done = subprocess.run([sys.executable, str(SCRIPT), argument], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == (code > 0)


def test_a_lock_that_was_not_made_again_says_so(locked: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = locked.LOCK.read_text()
    (tmp_path / "requirements.lock").write_text(re.sub(r"\nwebdataset==(.|\n)*?\n(?=[a-z])", "\n", text))
    monkeypatch.setattr(locked, "LOCK", tmp_path / "requirements.lock")
    with pytest.raises(ValueError, match="lacks webdataset: make it again"):
        locked.select(["train"])

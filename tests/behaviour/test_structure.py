"""The rules of CONTRIBUTING about folders, files, names and docstrings that code can hold."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("seecoder", "data", "train", "scripts")
MOST_MODULES = 15
# Programs whose parts have tests of their own; they only put these together.
ONLY_START = {"scripts/run_demo.py"}
SAYS_NOTHING = {"below", "shown", "take", "times", "asked", "here", "of", "said", "complain", "probe", "survey"}
SECTIONS = ("Args:", "Attributes:", "Raises:", "Yields:")


def modules(*folders: str) -> list[Path]:
    """Python files, relative to the root, without those that only make a package or start one."""
    found = [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return [path for path in found if path.name not in ("__init__.py", "__main__.py")]


SOURCES = modules(*FOLDERS)


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def test_no_folder_has_more_modules_than_one_can_survey():
    crowded = {str(folder): count for folder, count in Counter(path.parent for path in SOURCES).items()}
    assert {folder: count for folder, count in crowded.items() if count > MOST_MODULES} == {}


def test_no_two_files_have_one_name():
    counts = Counter(path.name for path in SOURCES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_module_is_private():
    assert [str(path) for path in SOURCES if path.name.startswith("_")] == []


def test_tests_mirror_the_source():
    mirrors = {Path("tests") / path.parent / f"test_{path.name}" for path in SOURCES}
    tests = {
        path
        for path in modules("tests")
        if path.name.startswith("test_") and path.parts[1] not in ("behaviour", "fuzzing")
    }
    assert sorted(map(str, tests - mirrors)) == []
    excused = {Path("tests") / Path(path).parent / f"test_{Path(path).name}" for path in ONLY_START}
    assert sorted(map(str, mirrors - tests - excused)) == []


def imported(path: Path, names: dict[str, Path]) -> Iterator[str]:
    """Modules of the project that a file imports anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_imports_go_in_a_circle():
    paths = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    below = {name: {part for part in imported(path, names) if part in names} - {name} for name, path in names.items()}
    while True:  # take away what imports nothing that is left; a circle stays
        free = [name for name, parts in below.items() if not parts]
        if not free:
            break
        below = {name: parts - set(free) for name, parts in below.items() if parts}
    assert below == {}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_are_named_by_what_they_give(folder):
    found = {f"{path}: {node.name}" for path in modules(folder) for node in functions(path)}
    assert [name for name in sorted(found) if name.rpartition(": ")[2].strip("_") in SAYS_NOTHING] == []


def test_public_names_are_listed_by_packages_alone():
    listing = [str(path) for path in SOURCES if re.search(r"^__all__\b", (ROOT / path).read_text(), re.MULTILINE)]
    assert listing == []


def test_no_call_hides_its_arguments_in_locals():
    assert [str(path) for path in SOURCES if re.search(r"\blocals\(\)", (ROOT / path).read_text())] == []


def entries(docstring: str) -> Iterator[str]:
    """What the sections of a docstring say of each entry."""
    inside, indent = False, 0
    for line in docstring.splitlines():
        stripped = line.strip()
        if stripped in SECTIONS:
            inside, indent = True, len(line) - len(line.lstrip())
        elif inside and stripped and len(line) - len(line.lstrip()) <= indent:
            inside = False
        elif inside and len(line) - len(line.lstrip()) == indent + 4:
            match = re.match(r"[\w*, .`\[\]]+(?: \([^)]*\))?: +(.*)", stripped)
            if match:
                yield match[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_entries_of_docstrings_begin_with_a_capital(folder):
    lower = []
    for path in modules(folder):
        documented = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        for node in documented:
            lower += [
                f"{path}:{node.name}: {text}" for text in entries(ast.get_docstring(node) or "") if text[:1].islower()
            ]
    assert lower == []

"""The house rules that code can hold: import directions, light imports, the class paths that saved folders name."""

import ast
import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"lightning", "webdataset", "deepspeed", "gradio", "torchmetrics", "pytorch_lightning"}
OURS = {"seecoder", "data", "train"}
ALLOWED = {"seecoder": set(), "data": {"seecoder"}, "train": {"seecoder", "data"}}


def imports(path: Path, *, module_level_only: bool = False) -> set[str]:
    """Absolute modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_in_one_direction(folder):
    for path in files(folder):
        foreign = {name.split(".")[0] for name in imports(path)} & (OURS - {folder} - ALLOWED[folder])
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_library_imports_no_training_stack():
    for path in files("seecoder"):
        found = {name.split(".")[0] for name in imports(path)} & HEAVY
        allowed = {"app": {"gradio"}, "evaluation": {"torchmetrics"}}.get(path.parent.name, set())
        assert found <= allowed, f"{path.relative_to(ROOT)} imports {found}"
        assert not {name.split(".")[0] for name in imports(path, module_level_only=True)} & HEAVY


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("images", {"base_model", "encoder", "export", "pipelines", "sampling", "cli", "app"}),
        ("weights", {"images", "base_model", "encoder", "export", "pipelines", "sampling", "cli", "app"}),
        ("base_model", {"images", "encoder", "export", "pipelines", "sampling", "cli", "app"}),
        ("encoder", {"base_model", "export", "pipelines", "sampling", "cli", "app"}),
        ("sampling", {"images", "weights", "encoder", "export", "pipelines", "cli", "app"}),
        ("sampling", {"base_model.loading", "base_model.latents", "base_model.added_conditions"}),  # its facts only
        ("export", {"pipelines", "sampling", "cli", "app"}),
        ("pipelines", {"export", "cli", "app"}),
        ("evaluation", {"base_model", "export", "pipelines", "sampling", "cli", "app"}),
    ],
)
def test_the_library_flows_one_way(part, forbidden):
    for path in files(f"seecoder/{part}"):
        inner = {name.removeprefix("seecoder.") for name in imports(path) if name.startswith("seecoder.")}
        found = {name for name in inner for room in forbidden if f"{name}.".startswith(f"{room}.")}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_every_package_that_is_imported_is_asked_for():
    """Not only brought by others, which may stop bringing it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    asked_for = {re.split(r"[^\w-]", name)[0].lower().replace("_", "-") for name in wanted}
    brought_by = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    for path in [path for folder in ALLOWED for path in files(folder)]:
        foreign = {name.split(".")[0] for name in imports(path)} - OURS - sys.stdlib_module_names
        lacking = {name for name in foreign if not brought_by.get(name, {name}) & asked_for}
        assert not lacking, f"{path.relative_to(ROOT)} imports {lacking}, which pyproject.toml does not name"


@pytest.mark.heavy
def test_importing_everything_public_pulls_in_no_training_stack():
    code = (
        "import sys, seecoder\n"
        "from seecoder import SeeCoder, SeeCoderPipeline, SeeCoderXLPipeline, load_image\n"
        "from seecoder.sampling import MultiDiffusion, DemoFusion, ScaleCrafter, SyncDiffusion\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_import_and_help_are_quick():
    out = subprocess.run(
        [sys.executable, "-c", "import sys, seecoder; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert out.stdout.strip() == "False"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "seecoder", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert time.perf_counter() - start < 3
    assert "vary" in done.stdout


def test_class_paths_are_a_file_format():
    from seecoder import SeeCoder, SeeCoderPipeline, SeeCoderXLPipeline

    assert (SeeCoder.__module__, SeeCoder.__name__) == ("seecoder.encoder", "SeeCoder")
    assert (SeeCoderPipeline.__module__, SeeCoderPipeline.__name__) == ("seecoder.pipelines", "SeeCoderPipeline")
    assert (SeeCoderXLPipeline.__module__, SeeCoderXLPipeline.__name__) == ("seecoder.pipelines", "SeeCoderXLPipeline")


def test_an_unknown_name_is_an_attribute_error():
    import seecoder

    with pytest.raises(AttributeError, match="no attribute 'SeeDecoder'"):
        _ = seecoder.SeeDecoder

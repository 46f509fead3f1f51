"""Encoders and contexts that earlier versions wrote load today and give the numbers that they gave then."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seecoder import SeeCoder
from seecoder.cli import main
from seecoder.encoder.context import is_context_file, load_context

FOLDER = Path(__file__).with_name("made_before")
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected_encoders.json").read_text())


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    """The picture (1, 3, height, width) that the earlier version encoded."""
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    return torch.stack([rows.expand(height, width), columns.expand(height, width), (rows - columns).abs()])[None]


def assert_close(found: torch.Tensor | None, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_exported_folder_gives_the_same_context_and_pooled_vector() -> None:
    encoder = SeeCoder.from_pretrained(FOLDER / "encoder")
    assert encoder.config["position_aware"]
    output = encoder.encode(picture())
    assert_close(output.context, EXPECTED["encoder"]["context"])
    assert_close(output.pooled, EXPECTED["encoder"]["pooled"])


@torch.no_grad()
def test_a_file_in_the_released_layout_gives_the_same_context_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    file = FOLDER / "released.safetensors"
    encoder = SeeCoder.from_official(file, **EXPECTED["released"]["sizes"])
    assert_close(encoder(picture()), EXPECTED["released"]["context"])
    encoder.save_official(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_context_file_holds_what_was_saved() -> None:
    file = FOLDER / "context.safetensors"
    assert is_context_file(file)
    saved = load_context(file)
    assert_close(saved.context, EXPECTED["encoder"]["context"])
    assert_close(saved.pooled, EXPECTED["encoder"]["pooled"])
    assert saved.metadata["encoder"] == "encoder"
    assert json.loads(saved.metadata["sources"]) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder", "SeeCoder"),
        ("released.safetensors", "released SeeCoder layout"),
        ("context.safetensors", "seecoder.context"),
    ],
)
def test_info_says_what_each_file_is(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(FOLDER / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == kind

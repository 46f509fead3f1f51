"""Where pictures come from, and which of them belong together."""

import io
import tarfile

import pytest
import torch

from seecoder.evaluation.pictures import find_pictures, match
from seecoder.images.saving import save_image


def draw(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        save_image(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(len(name))), folder / name)
    return folder


def write_shard(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_pictures_of_a_folder_are_told_by_content(tmp_path):
    draw(tmp_path, "b.png", "a.jpg")
    (tmp_path / "notes.png").write_text("no picture")
    assert find_pictures(tmp_path, tmp_path / "none") == [tmp_path / "a.jpg", tmp_path / "b.png"]


def test_of_what_vary_wrote_only_its_results_are_taken(tmp_path):
    draw(tmp_path, "sheet.png", "0001-cat-seed0.png", "0001-cat-seed0-stage1.png")
    (tmp_path / "settings.json").write_text("{}")
    assert find_pictures(tmp_path, tmp_path) == [tmp_path / "0001-cat-seed0.png"]


def test_inputs_are_found_among_what_vary_made_of_them(tmp_path):
    draw(tmp_path, "cat.png", "sheet.png", "0001-cat-seed0.png", "0001-cat-seed0-stage1.png")
    (tmp_path / "settings.json").write_text("{}")
    found = find_pictures(tmp_path, tmp_path, made=False)
    assert found == [tmp_path / "cat.png"]
    assert match(find_pictures(tmp_path, tmp_path), found) == {tmp_path / "0001-cat-seed0.png": tmp_path / "cat.png"}


def test_shards_are_unpacked_with_what_is_written_beside_pictures(tmp_path):
    content = (draw(tmp_path / "source", "x.png") / "x.png").read_bytes()
    shards, scratch = tmp_path / "shards", tmp_path / "scratch"
    shards.mkdir()
    write_shard(shards / "s0.tar", {"a/0.png": content, "a/0.json": b"{}", "1.png": content, "1.txt": b"text"})
    write_shard(shards / "s1.tar", {"1.png": content})
    found = find_pictures(shards, scratch)
    assert [str(path.relative_to(scratch)) for path in found] == ["s0/1.png", "s0/a/0.png", "s1/1.png"]
    assert found[1].with_suffix(".json").read_text() == "{}"
    assert len(find_pictures(shards / "s1.tar", tmp_path / "other")) == 1


@pytest.mark.parametrize("name", ["../../out.png", "/tmp/seecoder-test-out.png"])
def test_a_shard_writes_nothing_elsewhere(tmp_path, name):
    content = (draw(tmp_path / "source", "x.png") / "x.png").read_bytes()
    write_shard(tmp_path / "bad.tar", {name: content})
    scratch = tmp_path / "deep" / "scratch"
    try:
        found = find_pictures(tmp_path / "bad.tar", scratch)
    except ValueError:
        found = []
    assert all(path.is_relative_to(scratch) for path in found)
    assert not (tmp_path / "out.png").exists()
    assert not (tmp_path / "deep" / "out.png").exists()


def test_a_place_without_pictures_and_a_damaged_shard_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no pictures"):
        find_pictures(tmp_path, tmp_path)
    (tmp_path / "bad.tar").write_bytes(b"\x01" * 2000)
    with pytest.raises(ValueError, match=r"bad\.tar"):
        find_pictures(tmp_path, tmp_path / "scratch")


def test_variations_belong_to_their_input_and_what_is_not_clear_to_none(tmp_path):
    names = ("my cat.jpg", "dog.png", "bird.png", "twin.png", "twin.jpg")
    reference = [tmp_path / "in" / name for name in names]
    made = ("0001-my-cat-seed0.png", "0001-my-cat-seed7.png", "dog.jpg", "0009-other-seed0.png", "twin.png")
    pairs = match([tmp_path / "out" / name for name in made], reference)
    assert {one.name: other.name for one, other in pairs.items()} == {
        "0001-my-cat-seed0.png": "my cat.jpg",
        "0001-my-cat-seed7.png": "my cat.jpg",
        "dog.jpg": "dog.png",
    }

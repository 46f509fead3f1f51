"""What `--region` makes of a picture, and `--start-image` with its mask."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from seecoder.cli import main
from seecoder.cli.conditions.regions import with_regions
from seecoder.cli.opening import OpenedPictures
from seecoder.images.gate import load_image
from seecoder.images.saving import save_image
from seecoder.sampling import MultiDiffusion


@pytest.mark.parametrize("has_pooled", [True, False])
def test_regions_have_the_context_and_the_pooled_vector_of_their_picture(has_pooled):
    context, pooled = torch.rand(1, 5, 8), torch.rand(1, 3)
    seen, mask = torch.rand(3, 32, 32), torch.ones(4, 4)

    def context_arguments(image, image_size):
        assert image is seen
        assert image_size is None
        return {"context": context, "pooled_context": pooled} if has_pooled else {"context": context}

    pipe = SimpleNamespace(context_arguments=context_arguments, unet=SimpleNamespace(dtype=torch.float64))
    opened = OpenedPictures(encoded={"cat.png": seen}, masks={"mask.png": mask})
    arguments = Namespace(region=[("mask.png", "cat.png")], context_scale=2.0)
    (method,) = with_regions([MultiDiffusion()], arguments, pipe, opened) or []
    (found,) = method.regions
    assert torch.equal(found.context, 2.0 * context.double())
    assert (found.pooled is not None) == has_pooled
    if has_pooled:
        assert torch.equal(found.pooled, 2.0 * pooled.double())


@pytest.fixture
def room(tmp_path) -> tuple[str, str]:
    """A picture, and a mask of its left half."""
    start, mask = torch.full((3, 16, 16), 0.25), torch.zeros(3, 16, 16)
    mask[..., :8] = 1.0
    paths = [tmp_path / "room.png", tmp_path / "mask.png"]
    for path, pixels in zip(paths, (start, mask), strict=True):
        save_image(pixels, path)
    return str(paths[0]), str(paths[1])


def test_a_mask_keeps_the_rest_of_a_picture(pictures, networks, room, tmp_path):
    start, mask = room
    out = tmp_path / "out"
    given = ["vary", pictures[0], *networks, "--out", str(out), "--sheet", ""]
    assert main([*given, "--start-image", start, "--mask", mask, "--count", "2"]) == 0
    for path in sorted(out.glob("*.png")):
        found = load_image(path)
        assert torch.equal(found[..., 8:], load_image(start)[..., 8:])
        assert not torch.equal(found[..., :8], load_image(start)[..., :8])


@pytest.mark.parametrize("level", [0.0, 3 / 255])  # plain black, and what compression makes of it
def test_a_black_mask_gives_the_picture_back_and_says_so(pictures, networks, room, tmp_path, capsys, level):
    start, mask = room
    save_image(torch.full((3, 16, 16), level), mask)
    out = tmp_path / "out"
    given = ["vary", pictures[0], *networks, "--out", str(out), "--sheet", "", "--start-image", start, "--mask", mask]
    assert main(given) == 0
    assert torch.equal(load_image(next(out.glob("*.png"))), load_image(start))
    assert "the mask is black everywhere, so that nothing was redrawn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--strength", "0.5"], "`--strength` has no effect without `--start-image`"),
        (["--mask", "mask"], "`--mask` has no effect without `--start-image`"),
        (["--start-image", "room", "--strength", "0.1"], "`--strength`=0.1 of 2 steps must leave at least one step"),
    ],
)
def test_what_means_nothing_costs_no_time(pictures, networks, room, tmp_path, capsys, options, error, monkeypatch):
    monkeypatch.setattr("seecoder.cli.vary.load_pipeline", lambda given: pytest.fail("networks were loaded"))
    paths = dict(zip(("room", "mask"), room, strict=True))
    options = [paths.get(option, option) for option in options]
    assert main(["vary", pictures[0], *networks, *options, "--out", str(tmp_path / "out")]) == 2
    assert error in capsys.readouterr().err

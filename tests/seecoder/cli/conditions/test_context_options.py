"""Text, negative pictures, masks and strengths on the command line."""

from argparse import ArgumentParser, Namespace
from types import SimpleNamespace

import pytest
import torch

from seecoder.cli import main
from seecoder.cli.conditions.context_options import (
    add_context_options,
    negative_arguments,
    reference_masks,
    scale_by_blocks,
)
from seecoder.cli.opening import OpenedPictures
from seecoder.images.gate import load_image
from tests.fixtures.picture_files import write_mask


def test_strengths_are_numbers_words_or_numbers_by_block():
    assert scale_by_blocks("0.5") == 0.5
    assert scale_by_blocks("style") == "style"
    assert scale_by_blocks("down.block_2=1, mid=0.5") == {"down.block_2": 1.0, "mid": 0.5}
    parser = ArgumentParser(exit_on_error=False)
    add_context_options(parser)
    assert parser.parse_args([]).context_scale == 1.0


def test_negative_pictures_make_one_context_against():
    seen = []

    def context_arguments(image, image_size):
        seen.append((image, image_size))
        return {"context": torch.ones(1, 2, 3), "pooled_context": torch.ones(1, 4)}

    first, second = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    opened = OpenedPictures(encoded={"a.png": first, "b.png": second})
    pipe = SimpleNamespace(context_arguments=context_arguments)
    assert negative_arguments(Namespace(negative=[]), pipe, opened) == {}
    given = negative_arguments(Namespace(negative=["a.png", "b.png"]), pipe, opened)
    assert list(given) == ["negative_context", "negative_pooled_context"]
    (((pictures,), size),) = seen
    assert pictures[0] is first
    assert pictures[1] is second
    assert size is None


def test_masks_are_one_for_all_or_one_each():
    opened = OpenedPictures(masks={"a.png": torch.ones(2, 2), "b.png": torch.zeros(2, 2)})

    def given(*masks):
        return reference_masks(Namespace(reference_mask=list(masks), pictures=["x", "y", "z"]), opened)

    assert given() == [None] * 3
    assert [mask is opened.masks["a.png"] for mask in given("a.png")] == [True] * 3
    assert [mask is opened.masks["b.png"] for mask in given("a.png", "b.png", "a.png")] == [False, True, False]
    with pytest.raises(ValueError, match="`--reference-mask` names 2 masks for 3 pictures"):
        given("a.png", "b.png")


@pytest.mark.parametrize("command", ["vary", "panorama"])
def test_all_of_them_reach_the_pictures(pictures, networks, tmp_path, command, capsys):
    mask = write_mask(tmp_path / "mask.png", left=1.0, right=0.0)

    def make(*options):
        out = tmp_path / "out"
        run = [command, pictures[0], *networks, "--out", str(out), "--overwrite", "--sheet", "", *options]
        assert main(run) == 0, capsys.readouterr().err
        return load_image(next(out.glob("0001-*.png")))

    plain = make()
    for options in (["--negative", pictures[1]], ["--reference-mask", mask], ["--context-scale", "style"]):
        assert not torch.equal(make(*options), plain), options
    assert torch.equal(make("--context-scale", "down=1,mid=1,up=1"), plain)


def test_what_is_wrong_is_said_by_the_option_s_name(pictures, networks, tmp_path, capsys):
    run = ["vary", pictures[0], *networks, "--out", str(tmp_path / "out")]
    assert main([*run, "--context-scale", "stile"]) == 2
    assert "`--context-scale`='stile' must be a number, 'style' or 'layout'" in capsys.readouterr().err
    assert main([*run, "--negative-text", "blur"]) == 2
    assert "`--negative-text` has no effect without `--text`" in capsys.readouterr().err

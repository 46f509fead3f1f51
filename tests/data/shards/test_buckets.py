"""Which shape a picture gets, and what that costs."""

import numpy as np
import pytest

from data.shards.buckets import Buckets, bucket_of, describe_enlarged, describe_waste


def test_shapes_have_about_the_area_of_the_square_and_come_lying_and_standing() -> None:
    shapes = Buckets(resolutions=(512,)).shapes.tolist()
    assert shapes == [[384, 640], [448, 576], [512, 512], [576, 448], [640, 384]]
    assert all(height * width > 0.9 * 512**2 for height, width in shapes)


def test_a_picture_gets_the_nearest_proportions_of_the_largest_resolution_that_it_has() -> None:
    buckets = Buckets(resolutions=(1024, 512))
    chosen = buckets.choose(np.array([[512, 512], [2000, 2000], [1000, 1000], [600, 460], [1200, 2400], [10, 900]]))
    assert chosen.tolist() == [[512, 512], [1024, 1024], [512, 512], [576, 448], [704, 1408], [384, 640]]
    assert buckets.choose(np.array([[0, 0]])).tolist() == [[512, 512]]


def test_no_side_is_too_short_for_an_encoder() -> None:
    assert Buckets(resolutions=(64,), step=8, max_aspect=9.0).shapes.min() == 32


def test_a_shape_depends_on_the_picture_alone() -> None:
    buckets, sizes = Buckets(resolutions=(256, 512)), np.random.default_rng(0).integers(1, 2000, (500, 2))
    together = buckets.choose(sizes)
    assert all(buckets.choose(sizes[row : row + 1])[0].tolist() == together[row].tolist() for row in range(500))
    listed = Buckets(resolutions=[256, 512])  # type: ignore[arg-type]  # as a configuration has it
    for _ in range(2):  # drawn and remembered
        assert [bucket_of(listed, *size) for size in sizes.tolist()] == [tuple(shape) for shape in together.tolist()]
    assert bucket_of(Buckets(resolutions=(512,)), 512, 512) != bucket_of(Buckets(resolutions=(256,)), 512, 512)


def test_the_waste_is_counted() -> None:
    sizes = np.array([[512, 1024], [512, 512], [256, 256], [0, 0]])
    shapes = np.array([[512, 512], [512, 512], [512, 512], [512, 512]])
    said = describe_waste(sizes, shapes, group=3)
    assert "16.7% of the pixels are cut away (by squares 16.7%)" in said  # half of one of three
    assert "1 of 4 pictures are enlarged, up to 2 times, 1 without a size" in said
    assert "at most 2 wait" in said
    assert "1 in shapes of less than a group" in describe_waste(sizes[:1], shapes[:1], group=3)
    assert "no picture is enlarged" in describe_waste(sizes[:1], shapes[:1], group=3)


def test_enlarged_pictures_are_counted() -> None:
    sizes = np.array([[512, 1024], [100, 1024], [256, 512], [0, 0]])
    assert describe_enlarged(sizes, 256) == "1 of 4 pictures are enlarged, up to 2.56 times"
    assert describe_enlarged(sizes, np.array([[512, 512]] * 4)) == "2 of 4 pictures are enlarged, up to 5.12 times"
    assert describe_enlarged(sizes[:1], 512) == describe_enlarged(sizes[3:], 512) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": 0}, "`group`=0"),
        ({"step": 20}, "`step`=20 of Buckets.. must be a multiple of 8"),
        ({"max_aspect": 0.5}, "`max_aspect`=0.5"),
        ({"resolutions": ()}, r"`resolutions`=\(\)"),
        ({"resolutions": (32,)}, r"`resolutions`=\(32,\) .* from 64 up \(`step`=64\)"),
        ({"resolutions": (24,), "step": 8}, r"`resolutions`=\(24,\) .* from 32 up"),
        ({"resolutions": (32,), "step": 24}, r"`resolutions`=\(32,\) .* from 48 up"),
    ],
)
def test_bad_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Buckets(**arguments)

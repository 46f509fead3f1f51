"""Contact sheets: everything is on them, nothing is cropped."""

import pytest
from PIL import Image

from seecoder.images.sheet import contact_sheet, sheet_size


def plain(colour, size):
    return Image.new("RGB", size, colour)


def test_every_picture_is_on_the_sheet_whole():
    rows = [[plain((255, 0, 0), (40, 20)), plain((0, 255, 0), (20, 40))], [plain((0, 0, 255), (10, 10))]]
    sheet = contact_sheet(rows, cell=20)
    counts = {colour: count for count, colour in sheet.getcolors(10_000)}
    assert counts[(255, 0, 0)] == 20 * 10
    assert counts[(0, 255, 0)] == 10 * 20
    assert counts[(0, 0, 255)] == 20 * 20  # twice as large
    assert contact_sheet([[plain((0, 0, 255), (11, 11))]], cell=20).size == (23, 23)  # by whole factors only


def test_labels_need_the_same_layout_and_may_be_anything():
    rows = [[plain((0, 0, 0), (50, 50))]]
    assert contact_sheet(rows, [["猫 cat\n"]]).height > contact_sheet(rows).height
    with pytest.raises(ValueError, match="must have the layout of `rows`"):
        contact_sheet(rows, [["a", "b"]])
    with pytest.raises(ValueError, match="must hold at least one picture"):
        contact_sheet([[]])


def test_the_size_of_a_sheet_is_known_before_its_pictures():
    sizes = [[(40, 20), (300, 700)], [(11, 11)], [(5000, 3)]]
    rows = [[plain((0, 0, 0), size) for size in row] for row in sizes]
    assert sheet_size(sizes, 200) == contact_sheet(rows, [["a"] * len(row) for row in rows], 200).size

"""Contact sheets: many small pictures in one, in labelled rows."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

_GAP = 6
_LABEL = 16
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[Sequence[str]] | None = None, cell: int = 256
) -> Image.Image:
    """Put pictures side by side, each fitted into a cell without being cropped.

    Large pictures are made smaller; small ones are enlarged by a whole factor, so that their pixels stay as they are.

    Args:
        rows: The pictures of every row, from top to bottom; rows may differ in length.
        labels: A line of text under every picture, in the same layout; None for none.
        cell: Longest side of a picture on the sheet, in pixels.

    Returns:
        The sheet, RGB on white.

    Raises:
        ValueError: If there is no picture, or the labels have another layout.
    """
    if not any(rows):
        raise ValueError("`rows` must hold at least one picture.")
    if labels is not None and [len(row) for row in labels] != [len(row) for row in rows]:
        raise ValueError("`labels` must have the layout of `rows`. Give one label for each picture.")
    small = [[_fitted(image, cell) for image in row] for row in rows]
    widths, heights = _layout([[image.size for image in row] for row in small], labels is not None)
    sheet = Image.new("RGB", (_length(widths), _length(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for index, row in enumerate(small):
        left = _GAP
        for column, image in enumerate(row):
            sheet.paste(image, (left, top))
            if labels:
                draw.text(
                    (left, top + heights[index] - _LABEL), _printable(labels[index][column], widths[column]), fill=_INK
                )
            left += widths[column] + _GAP
        top += heights[index] + _GAP
    return sheet


def sheet_size(sizes: Sequence[Sequence[tuple[int, int]]], cell: int = 256) -> tuple[int, int]:
    """Width and height of the labelled sheet that pictures of these sizes will make.

    Args:
        sizes: (width, height) of the pictures of every row.
        cell: Longest side of a picture on the sheet, in pixels.
    """
    widths, heights = _layout([[_fitted_size(size, cell) for size in row] for row in sizes], True)
    return _length(widths), _length(heights)


def _layout(sizes: Sequence[Sequence[tuple[int, int]]], labelled: bool) -> tuple[list[int], list[int]]:
    """Widths of the columns and heights of the rows."""
    columns = max(len(row) for row in sizes)
    widths = [max((row[i][0] for row in sizes if i < len(row)), default=0) for i in range(columns)]
    return widths, [max((height for _, height in row), default=0) + (_LABEL if labelled else 0) for row in sizes]


def _length(parts: Sequence[int]) -> int:
    return sum(parts) + _GAP * (len(parts) + 1)


def _fitted_size(size: tuple[int, int], cell: int) -> tuple[int, int]:
    longest = max(size)
    if longest <= cell:
        return size[0] * (cell // longest), size[1] * (cell // longest)
    return max(1, round(size[0] * cell / longest)), max(1, round(size[1] * cell / longest))


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    kind = Image.Resampling.NEAREST if max(image.size) <= cell else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(_fitted_size(image.size, cell), kind)


def _printable(text: str, width: int) -> str:
    """Pillow's own font knows Latin letters only; what does not fit is cut."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return plain[: max(1, width // 6)]

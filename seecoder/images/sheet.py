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
    columns = max(len(row) for row in small)
    widths = [max((row[i].width for row in small if i < len(row)), default=0) for i in range(columns)]
    heights = [max((image.height for image in row), default=0) + (_LABEL if labels else 0) for row in small]
    sheet = Image.new("RGB", (sum(widths) + _GAP * (columns + 1), sum(heights) + _GAP * (len(small) + 1)), _PAPER)
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


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    image = image.convert("RGB")
    longest = max(image.size)
    if longest <= cell:
        factor = cell // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * cell / longest)), max(1, round(image.height * cell / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _printable(text: str, width: int) -> str:
    """Pillow's own font knows Latin letters only; what does not fit is cut."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return plain[: max(1, width // 6)]

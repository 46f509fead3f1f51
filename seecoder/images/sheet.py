"""Contact sheets: many small pictures in one, in labelled rows."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

__all__ = ["contact_sheet"]

_GAP = 6
_LABEL = 16
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[Sequence[str]] | None = None, cell: int = 256
) -> Image.Image:
    """Put pictures side by side, each fitted into a cell without being cropped.

    Large pictures are made smaller; small ones are enlarged by a whole factor, so that their pixels stay as they are.

    Args:
        rows: the pictures of every row, from top to bottom; rows may differ in length.
        labels: a line of text under every picture, in the same layout; None for none.
        cell: longest side of a picture on the sheet, in pixels.

    Returns:
        The sheet, RGB on white.

    Raises:
        ValueError: no picture, or labels in another layout.
    """
    if not any(rows):
        raise ValueError("`rows` holds no picture; a contact sheet needs at least one.")
    if labels is not None and [len(row) for row in labels] != [len(row) for row in rows]:
        raise ValueError("`labels` has another layout than `rows`; give one label a picture.")
    small = [[_fitted(picture, cell) for picture in row] for row in rows]
    columns = max(len(row) for row in small)
    widths = [max((row[i].width for row in small if i < len(row)), default=0) for i in range(columns)]
    heights = [max((picture.height for picture in row), default=0) + (_LABEL if labels else 0) for row in small]
    sheet = Image.new("RGB", (sum(widths) + _GAP * (columns + 1), sum(heights) + _GAP * (len(small) + 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for index, row in enumerate(small):
        left = _GAP
        for column, picture in enumerate(row):
            sheet.paste(picture, (left, top))
            if labels:
                draw.text(
                    (left, top + heights[index] - _LABEL), _printable(labels[index][column], widths[column]), fill=_INK
                )
            left += widths[column] + _GAP
        top += heights[index] + _GAP
    return sheet


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= cell:
        factor = cell // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * cell / longest)), max(1, round(picture.height * cell / longest)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _printable(text: str, width: int) -> str:
    """Pillow's own font knows Latin letters only; what does not fit is cut."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return plain[: max(1, width // 6)]

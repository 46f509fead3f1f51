"""GIF89a: the first frame, and nothing but transparency where it leaves the canvas empty."""

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from seecoder.images.header import BadImage, BoundedFile, check_size, warn_of_frames

_MAX_BLOCKS = 4000  # of 255 bytes, in front of the frame; Pillow copies a comment again with every block of it


class _GifFile(GifImageFile):
    """Pillow's reader for the first frame alone."""

    is_animated = False  # pyright: ignore[reportAssignmentType]  # Pillow would read on, to the second frame
    blocks = 0

    def data(self) -> bytes | None:
        self.blocks += 1
        if self.blocks > _MAX_BLOCKS:
            raise BadImage(f"the file is damaged: more than {_MAX_BLOCKS:,} blocks before the picture")
        return super().data()


def open_gif(data: bytes, max_pixels: int) -> Image.Image:
    """Open the first frame of a GIF file; one that leaves part of its canvas empty is decoded, too."""
    image = _GifFile(BoundedFile(data))
    check_size(*image.size, max_pixels)
    if data.count(b"!\xf9\x04") > 1:  # the control blocks of several frames
        warn_of_frames()
    box = image.tile[0].extents
    if box is None or box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(box), box)
    return canvas

"""Pictures in and out: a checked file becomes numbers in [0, 1], numbers become a file."""

from seecoder.images.gate import ImageError, load_image
from seecoder.images.masks import load_control_image, load_mask
from seecoder.images.saving import save_image, to_pil
from seecoder.images.scaling import ENCODED_SIZE, limit_area

__all__ = [
    "ENCODED_SIZE",
    "ImageError",
    "limit_area",
    "load_control_image",
    "load_image",
    "load_mask",
    "save_image",
    "to_pil",
]

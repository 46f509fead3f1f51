"""Pictures in and out: a checked file becomes numbers in [0, 1], numbers become a file."""

from seecoder.images.loading import ENCODED_SIZE, ImageError, limit_area, load_image, save_image, to_pil

__all__ = ["ENCODED_SIZE", "ImageError", "limit_area", "load_image", "save_image", "to_pil"]

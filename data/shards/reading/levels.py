"""Pictures of samples as bytes of colour; plain JPEG is decoded by torchvision, which copies pixels less often."""

import functools
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from seecoder.images.colours import rasterise
from seecoder.images.gate import MAX_PIXELS, read_pixels, to_tensor


def load_levels(content: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Load the picture of a file as `load_image` does, but leave 8 bits 8 bits.

    Returns:
        (3, H, W) on the CPU: uint8, where the picture has 8 bits a channel and nothing shows through it; float32 in
        [0, 1] otherwise.
    """
    values = read_pixels(content, max_pixels, decode)
    if values.dtype != np.uint8 or values.shape[2] in (2, 4):
        return to_tensor(values, (255, 255, 255))
    levels = values.copy() if min(values.strides) < 0 else values  # turned pictures go backwards through memory
    return torch.from_numpy(levels).movedim(2, 0).expand(3, -1, -1)


def decode(image: Image.Image, content: bytes) -> np.ndarray:
    """Decode an opened file as `rasterise` does; plain JPEG by torchvision, where that gives Pillow's bytes.

    Builds may differ, and torchvision's decoders are to be removed.
    """
    is_taken = getattr(image, "is_plain", False) and _equals_pillow()
    values = _by_torchvision(content, image.mode) if is_taken else None
    return rasterise(image) if values is None else values


def _by_torchvision(content: bytes, mode: str) -> np.ndarray | None:
    """(H, W, 1 or 3) uint8 of a plain JPEG file; None where Pillow has to say what is wrong."""
    try:
        import torchvision.io  # noqa: F401  # where the operator is

        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return torch.ops.image.decode_jpeg(data, len(mode), False).permute(1, 2, 0).numpy()
    except (ImportError, AttributeError, RuntimeError):  # there is no such operator, or it refuses the file
        return None


@functools.cache
def _equals_pillow() -> bool:
    """Whether torchvision's decoder has Pillow's bytes for noise in each kind of JPEG."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8))
    for mode, subsampling in (("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)):
        file = BytesIO()
        noise.convert(mode).save(file, "JPEG", subsampling=subsampling)
        found = _by_torchvision(file.getvalue(), mode)
        if found is None or found.tobytes() != JpegImageFile(BytesIO(file.getvalue())).tobytes():
            return False
    return True

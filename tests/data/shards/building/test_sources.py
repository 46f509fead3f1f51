"""Samples as bytes."""

import io

import numpy as np
from PIL import Image

from data.shards.building.sources import encode_image, encode_json


def test_json_is_plain_ascii():
    assert encode_json({"name": "é", "size": 3}) == b'{"name": "\\u00e9", "size": 3}'


def test_images_are_written_in_the_format_that_is_asked_for():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for encoding, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"quality": 80})):
        content = encode_image(Image.fromarray(pixels), encoding, **options)
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.size) == (encoding, (4, 4))
            assert encoding != "PNG" or np.array_equal(np.asarray(image), pixels)

"""What a source of samples has to offer to be built into shards, and how its samples are written as bytes."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image


class Item(NamedTuple):
    """One sample, or why there is none.

    Attributes:
        name: Where it comes from.
        key: Its key in the shard.
        members: Bytes by extension; empty for a bad source.
        reason: Why the source is bad; "" for a good one.
    """

    name: str
    key: str
    members: Mapping[str, bytes]
    reason: str = ""


class Source(Protocol):
    """Where samples come from; picklable, and the same sample for the same number every time."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on, in plain values: another build with equal settings gives equal bytes."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """Kinds of member that every sample has."""
        ...

    @property
    def sizes(self) -> Sequence[int] | None:
        """Bytes of each source, where known."""
        ...

    def __len__(self) -> int: ...

    def samples(self, start: int, stop: int) -> Iterator[Item]:
        """Make samples `start` to `stop - 1`."""
        ...


def encode_json(content: Mapping[str, Any]) -> bytes:
    """JSON in plain ASCII."""
    return json.dumps(content, ensure_ascii=True).encode("ascii")


def encode_image(image: Image.Image, encoding: str, **options: int) -> bytes:
    """Bytes of an image file in one of Pillow's formats, with the options of that format."""
    with io.BytesIO() as stream:
        image.save(stream, encoding, **options)
        return stream.getvalue()

"""Shards of the world: scenes are drawn while they are written."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from data.shards.building.sources import Item, encode_image, encode_json
from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.checks import check, whole
from seecoder.images.saving import to_pil

_SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class WorldScenes:
    """Pictures of the world as PNG, with their attributes as JSON.

    The JSON holds what `Scenes.describe` says, and `seed` and `number`, from which `sample_scenes` draws the
    scene again.

    Attributes:
        count: How many.
        seed: Seed of the scenes.
        size: Height and width in pixels.
        start: Number of the first scene, so that further shards of one seed can be made.
    """

    members = ("json", "png")
    sizes = None  # unknown before they are drawn

    count: int
    seed: int
    size: int
    start: int = 0

    def __post_init__(self) -> None:
        check(self, count=whole(1), size=whole(8), start=whole(0))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on."""
        return {"kind": "world"} | asdict(self)

    def __len__(self) -> int:
        return self.count

    def samples(self, start: int, stop: int) -> Iterator[Item]:
        """Draw scenes."""
        for first in range(start, stop, _SCENES_AT_ONCE):
            scenes = sample_scenes(min(_SCENES_AT_ONCE, stop - first), self.seed, self.start + first)
            for row, pixels in enumerate(render(scenes, self.size)):
                number = self.start + first + row
                about = scenes.describe(row) | {"seed": self.seed, "number": number, "size": self.size}
                yield Item(
                    f"scene {number}",
                    f"{number:09d}",
                    {"png": encode_image(to_pil(pixels), "PNG"), "json": encode_json(about)},
                )

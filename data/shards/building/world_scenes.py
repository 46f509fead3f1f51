"""Shards of the world: scenes are drawn while they are written."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from data.shards.building.sources import Item, encode_image, encode_json
from data.world.render import render
from data.world.scenes import move_scenes, sample_scenes
from seecoder.checks import check, choice, optional, whole
from seecoder.images.saving import to_pil

_SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class WorldScenes:
    """Pictures of the world as PNG, with their attributes as JSON.

    The JSON holds what `Scenes.describe` says, and `seed` and `number`, from which `sample_scenes` draws the
    scene again. Of a pair it describes the picture and, under `reference`, the scene.

    Attributes:
        count: How many.
        seed: Seed of the scenes.
        size: Height and width in pixels.
        start: Number of the first scene, so that further shards of one seed can be made.
        pairs: "moved": the scene is the member `reference.png`, and the picture shows it moved, with another centre and
            size of the object. None: the scene is the picture.
    """

    sizes = None  # unknown before they are drawn

    count: int
    seed: int
    size: int
    start: int = 0
    pairs: str | None = None

    def __post_init__(self) -> None:
        check(self, count=whole(1), size=whole(8), start=whole(0), pairs=optional(choice("moved")))

    @property
    def members(self) -> tuple[str, ...]:
        """Kinds of member that every sample has."""
        return ("json", "png") if self.pairs is None else ("json", "png", "reference.png")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on."""
        return {"kind": "world"} | {name: value for name, value in asdict(self).items() if value is not None}

    def __len__(self) -> int:
        return self.count

    def samples(self, start: int, stop: int) -> Iterator[Item]:
        """Draw scenes."""
        for first in range(start, stop, _SCENES_AT_ONCE):
            scenes = sample_scenes(min(_SCENES_AT_ONCE, stop - first), self.seed, self.start + first)
            shown = {"png": scenes}
            if self.pairs is not None:
                shown = {"png": move_scenes(scenes, self.seed, self.start + first), "reference.png": scenes}
            drawn = {kind: render(which, self.size) for kind, which in shown.items()}
            for row in range(len(scenes)):
                number = self.start + first + row
                about = shown["png"].describe(row) | {"seed": self.seed, "number": number, "size": self.size}
                about |= {"reference": scenes.describe(row)} if self.pairs is not None else {}
                images = {kind: encode_image(to_pil(pixels[row]), "PNG") for kind, pixels in drawn.items()}
                yield Item(f"scene {number}", f"{number:09d}", images | {"json": encode_json(about)})

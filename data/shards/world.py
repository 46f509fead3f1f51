"""From the JSON of a world shard back to the scenes that it was drawn from."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from data.world.scenes import Scenes, sample_scenes


def scenes_of(attributes: Sequence[dict[str, Any]]) -> Scenes:
    """Make the scenes of a batch again, exactly, from `seed` and `number` of each.

    Args:
        attributes: JSON of N samples, as `python -m data.build world` writes it; at least one.

    Raises:
        ValueError: There are none, or a sample is not from the world.
    """
    if not attributes:
        raise ValueError("`attributes` is empty; at least one sample is needed.")
    try:
        scenes = [sample_scenes(1, row["seed"], row["number"]) for row in attributes]
    except (KeyError, TypeError) as error:
        raise ValueError("`attributes` has a row without `seed` and `number`: not a sample of the world.") from error
    return Scenes(**{field.name: torch.cat([getattr(one, field.name) for one in scenes]) for field in fields(Scenes)})

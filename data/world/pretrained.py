"""The world's committed base: what Stable Diffusion is to a user, in a few megabytes, trained by this project itself.

`data/world/base/` is a diffusers folder (`vae/`, `unet/`, `scheduler/`, half precision) with two parts of the world
beside it: `conditioner/`, which turns true attributes into context tokens, and `backbone/`, the stand-in for ImageNet's
Swin. `data/world/base/README.md` says how it was made and what the reader counted.
"""

from pathlib import Path

from data.world.conditioner import WorldConditioner
from seecoder.base_model.loading import load_model

BASE = Path(__file__).resolve().parent / "base"
ENCODERS = Path(__file__).resolve().parent / "encoders"


def load_conditioner(base: str | Path = BASE) -> WorldConditioner:
    """Load the conditioner of a base in float32, in evaluation mode."""
    folder = Path(base) / "conditioner"
    if not folder.is_dir():
        raise FileNotFoundError(f"`base`={base} has no folder conditioner/: it is not a base of the world.")
    return load_model(WorldConditioner, base, "conditioner")

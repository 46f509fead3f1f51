"""Where training samples come from. Configurations name the classes that are listed here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.sources.shard_data import ShardPictures
    from train.sources.stage_data import StageData
    from train.sources.world_data import WorldPictures
    from train.sources.world_latents import WorldLatents

__all__ = ["ShardPictures", "StageData", "WorldLatents", "WorldPictures"]

# Looked up on first use: each source imports other large libraries.
_MODULES = {
    "ShardPictures": "shard_data",
    "StageData": "stage_data",
    "WorldLatents": "world_latents",
    "WorldPictures": "world_data",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

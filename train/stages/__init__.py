"""What can be trained: one stage for each kind of model. Configurations name the classes that are listed here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.stages.autoencoder import AutoencoderStage
    from train.stages.backbone import BackboneStage
    from train.stages.diffusion import WorldDiffusionStage
    from train.stages.seecoder import SeeCoderStage
    from train.stages.stage import Stage

__all__ = ["AutoencoderStage", "BackboneStage", "SeeCoderStage", "Stage", "WorldDiffusionStage"]

# Looked up on first use: each stage imports other large libraries.
_MODULES = {
    "AutoencoderStage": "autoencoder",
    "BackboneStage": "backbone",
    "SeeCoderStage": "seecoder",
    "Stage": "stage",
    "WorldDiffusionStage": "diffusion",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

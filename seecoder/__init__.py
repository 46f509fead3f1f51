"""Image-context encoders for latent diffusion: pictures instead of prompts, at any resolution."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seecoder.encoder.model import SeeCoder
    from seecoder.images.gate import ImageError, load_image
    from seecoder.images.masks import load_mask
    from seecoder.images.scaling import limit_area
    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline
    from seecoder.weights.safetensors_files import WeightsError

__version__ = "0.1.0"

# Looked up on first use: importing torch, timm and diffusers takes seconds that `seecoder --help` must not spend.
_HOMES = {
    "SeeCoder": "seecoder.encoder",
    "ImageError": "seecoder.images",
    "limit_area": "seecoder.images",
    "load_image": "seecoder.images",
    "load_mask": "seecoder.images",
    "SeeCoderPipeline": "seecoder.pipelines",
    "SeeCoderXLPipeline": "seecoder.pipelines",
    "WeightsError": "seecoder.weights",
}

__all__ = [
    "ImageError",
    "SeeCoder",
    "SeeCoderPipeline",
    "SeeCoderXLPipeline",
    "WeightsError",
    "__version__",
    "limit_area",
    "load_image",
    "load_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Pipelines in diffusers' manner: pictures in, pictures out, with any Stable Diffusion base.

This package is where the classes say that they live; saved folders rely on it.
"""

import diffusers

from seecoder.encoder.context import ImageSet
from seecoder.pipelines.call import SeeCoderPipelineOutput
from seecoder.pipelines.stable_diffusion import SeeCoderPipeline
from seecoder.pipelines.stable_diffusion_xl import SeeCoderXLPipeline

__all__ = ["ImageSet", "SeeCoderPipeline", "SeeCoderPipelineOutput", "SeeCoderXLPipeline"]

# `DiffusionPipeline.from_pretrained` looks in diffusers for the class that a saved folder names.
for _pipeline in (SeeCoderPipeline, SeeCoderXLPipeline):
    setattr(diffusers, _pipeline.__name__, _pipeline)

"""SeeCoder, the encoder: a picture becomes the tokens that take the place of a prompt's embedding.

This package is where the class says that it lives; saved folders rely on it.
"""

# diffusers looks beside a saved part's class for the base class whose `from_pretrained` it is to call.
from diffusers import ModelMixin as ModelMixin

from seecoder.encoder.model import SeeCoder, SeeCoderOutput

__all__ = ["SeeCoder", "SeeCoderOutput"]

"""SeeCoder, the encoder: a picture becomes the tokens that take the place of a prompt's embedding.

This package is where the class says that it lives; saved folders rely on it.
"""

from seecoder.encoder.model import SeeCoder, SeeCoderOutput

__all__ = ["SeeCoder", "SeeCoderOutput"]

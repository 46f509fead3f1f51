"""The parts of the encoder: backbone, decoder, query transformer, positional encoding."""

from seecoder.modules.backbone import SimpleFeaturePyramid, build_backbone
from seecoder.modules.decoder import Decoder, DecoderAttention
from seecoder.modules.positional_encoding import PositionalEncoding, position_features
from seecoder.modules.query_transformer import QueryTransformer
from seecoder.modules.swin import SwinBackbone

__all__ = [
    "Decoder",
    "DecoderAttention",
    "PositionalEncoding",
    "QueryTransformer",
    "SimpleFeaturePyramid",
    "SwinBackbone",
    "build_backbone",
    "position_features",
]

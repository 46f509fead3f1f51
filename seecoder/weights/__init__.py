"""Weights in and out: safetensors only, strictly, and complete or not at all."""

from seecoder.weights.atomic import atomic_directory, atomic_path, remove_left_behind
from seecoder.weights.digests import file_sha256, tensors_sha256
from seecoder.weights.pickles import read_pickle_allowed
from seecoder.weights.safetensors_files import WeightsError, read_safetensors, write_safetensors
from seecoder.weights.strict_loading import load_strict

__all__ = [
    "WeightsError",
    "atomic_directory",
    "atomic_path",
    "file_sha256",
    "load_strict",
    "read_pickle_allowed",
    "read_safetensors",
    "remove_left_behind",
    "tensors_sha256",
    "write_safetensors",
]

"""Weights in and out: safetensors only, strictly, and complete or not at all."""

from seecoder.weights.atomic import atomic_directory, atomic_path, remove_left_behind
from seecoder.weights.checks import WeightsError
from seecoder.weights.safetensors_files import load_strict, read_pickle_allowed, read_safetensors, write_safetensors

__all__ = [
    "WeightsError",
    "atomic_directory",
    "atomic_path",
    "load_strict",
    "read_pickle_allowed",
    "read_safetensors",
    "remove_left_behind",
    "write_safetensors",
]

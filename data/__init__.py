"""Code that makes and reads data; runs from a checkout and is not part of the wheel."""

from seecoder.threads import wait_passively

wait_passively()  # here, because every module of the package may import torch

"""Errors that mean "no memory left", in the words of every platform that torch runs on."""

import re

import torch

# What raised them: torch's allocators for CUDA, HIP, XPU, MPS and the CPU (Linux, Windows), the drivers, the libraries
# of linear algebra and convolution (cuBLAS, hipBLAS, rocBLAS, cuDNN, MIOpen), Metal, SYCL, C++ and DirectML.
_WORDS = re.compile(
    r"out of (device |host |gpu )?memory"
    r"|out_?of_?(device_?|host_?)?(memory|resources)"
    r"|(can't|cannot|could not|failed to|unable to) allocate"
    r"|(not enough|insufficient) memory"
    r"|alloc(ation)?_?failed"
    r"|rocblas_status_memory_error"
    r"|invalid buffer size"
    r"|bad_?alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def release_cached_memory() -> None:
    """Give back what the accelerator's allocator keeps for later, so that smaller parts find room."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if torch.xpu.is_available():
        torch.xpu.empty_cache()

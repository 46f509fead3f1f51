"""Which errors mean that memory ran out."""

import pytest
import torch

from seecoder.pipelines.out_of_memory import is_out_of_memory, release_cached_memory

MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB.",
    "HIP out of memory. Tried to allocate 2.00 GiB.",
    "XPU out of memory. Tried to allocate 8.00 GiB.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "HIP error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocblas_status_memory_error",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "miopenStatusAllocFailed",
    "MPS backend out of memory (MPS allocated: 8.99 GB, other allocations: 9.00 MB, max allowed: 9.07 GB).",
    "Invalid buffer size: 24.00 GiB",
    "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "Failed to allocate private MTLBuffer for size 4294967296",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4096 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory available!",
    "std::bad_alloc",
]
OTHER = [
    "CUDA error: an illegal memory access was encountered",
    "mat1 and mat2 shapes cannot be multiplied (6x32 and 64x16)",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "unsupported operation: some elements of the input tensor refer to a single memory location",
    "index 4 is out of bounds for dimension 0 with size 4",
    "",
]


@pytest.mark.parametrize("words", MEMORY)
def test_every_platform_is_understood(words) -> None:
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize("words", OTHER)
def test_other_errors_are_not_taken_for_it(words) -> None:
    assert not is_out_of_memory(RuntimeError(words))


def test_classes_say_it_without_words() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_releasing_is_harmless_without_an_accelerator() -> None:
    release_cached_memory()

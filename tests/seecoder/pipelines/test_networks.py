"""The networks as callables: fewer rows at a time when memory runs out, and codecs that invert each other's scaling."""

from types import SimpleNamespace

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.pipelines.networks import (
    HalvedOnDemand,
    bring_to_device,
    is_out_of_memory,
    module_attributes,
    working_dtype,
)
from tests.fixtures.pipelines import build_vae


class Greedy:
    """A network that fits `limit` rows into memory and counts its calls."""

    def __init__(self, limit):
        self.limit = limit
        self.rows = []

    def __call__(self, latents, timestep, context, *, extra, nested):
        assert len(latents) == len(context) == len(extra) == len(nested["inner"])
        if len(latents) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.rows.append(len(latents))
        return latents + context + extra + nested["inner"] + timestep


@pytest.mark.parametrize(("limit", "expected"), [(8, [7]), (4, [3, 3, 1]), (1, [1] * 7)])
def test_rows_are_halved_until_they_fit(limit, expected):
    network = Greedy(limit)
    notes = []
    halved = HalvedOnDemand(network, "UNet", notes)
    values = [torch.randn(7, 2) for _ in range(4)]
    given = {"extra": values[2], "nested": {"inner": values[3]}}
    output = halved(values[0], torch.tensor(5.0), values[1], **given)
    torch.testing.assert_close(output, sum(values) + 5.0)
    assert network.rows == expected
    assert bool(notes) == (limit < 7)
    halved(values[0], torch.tensor(5.0), values[1], **given)
    assert network.rows == expected * 2  # what worked is kept; nothing is tried again


def test_a_single_row_that_does_not_fit_is_a_clear_error():
    network, two = HalvedOnDemand(Greedy(0), "UNet", []), torch.zeros(2, 1)
    with pytest.raises(RuntimeError, match=r"no memory left for one row .* in the UNet"):
        network(two, torch.tensor(0.0), two, extra=two, nested={"inner": two})


def test_lists_of_residuals_are_split_and_joined():
    def network(latents, timestep):
        if len(latents) > 1:
            raise torch.OutOfMemoryError
        return {"down": [latents, latents * 2], "middle": latents * 3}

    output = HalvedOnDemand(network, "ControlNet", [])(torch.arange(3.0)[:, None], torch.tensor(0.0))
    torch.testing.assert_close(output["down"][1], torch.tensor([[0.0], [2.0], [4.0]]))
    torch.testing.assert_close(output["middle"], torch.tensor([[0.0], [3.0], [6.0]]))


def test_the_picture_is_the_same_with_little_memory(parts, picture):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)

    def make():
        return pipe(picture, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")

    plenty = make()

    def hook(module, given):
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.unet.register_forward_pre_hook(hook)
    try:
        little = make()
    finally:
        handle.remove()
    torch.testing.assert_close(little.images, plenty.images, atol=1e-5, rtol=0)
    assert "the UNet ran out of memory at 2 rows" in little.notes[0]
    assert plenty.notes == []


def test_an_offloaded_module_is_brought_by_its_hook():
    brought = []
    module = torch.nn.Linear(1, 1)
    bring_to_device(module)
    module._hf_hook = SimpleNamespace(pre_forward=brought.append)
    bring_to_device(module)
    assert brought == [module]


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


def test_the_attributes_are_those_of_all_modules_once():
    vae = build_vae()
    found = [id(own) for own in module_attributes(vae)]
    assert sorted(found) == sorted(id(vars(module)) for module in vae.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_working_data_type_is_that_of_diffusers(dtype):
    assert working_dtype(build_vae().to(dtype)) == dtype


def test_weights_kept_narrower_than_the_computation_do_not_say_how_the_network_works():
    vae = build_vae()
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert working_dtype(vae) == vae.dtype == torch.bfloat16

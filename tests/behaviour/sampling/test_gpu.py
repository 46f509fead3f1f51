"""What only an accelerator can show: half precision, real lack of memory, offloading."""

import pytest
import torch

from seecoder import SeeCoderPipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def pipe(build):
    pipeline = SeeCoderPipeline(
        unet=build["unet"](), vae=build["vae"](), scheduler=build["scheduler"](), encoder=build["encoder"]()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipe, picture, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, num_inference_steps=3, generator=generator, output_type="pt", **arguments)


def test_the_same_seed_gives_the_same_picture_on_both_devices(pipe, picture):
    on_cpu = make(pipe, picture).images
    torch.testing.assert_close(make(pipe.to("cuda"), picture).images.cpu(), on_cpu, atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float32(pipe, picture, dtype):
    full = make(pipe.to("cuda"), picture).images
    for module in (pipe.unet, pipe.vae, pipe.encoder):
        module.to(dtype)
    assert (make(pipe, picture).images - full).abs().mean() < 0.05


def test_offloading_gives_the_same_picture(pipe, picture):
    plain = make(pipe.to("cuda"), picture).images.cpu()
    pipe.to("cpu")
    pipe.enable_model_cpu_offload()
    torch.testing.assert_close(make(pipe, picture).images.cpu(), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(make(pipe, picture).images.cpu(), plain, atol=1e-4, rtol=0)


def test_a_real_lack_of_memory_ends_in_tiles(pipe, picture):
    pipe.to("cuda")
    latents = torch.randn(1, 4, 512, 512, device="cuda")
    from seecoder.pipelines.autoencoding import decode_latents

    torch.cuda.reset_peak_memory_stats()
    whole, notes = decode_latents(pipe.vae, latents)
    assert notes == []
    peak = torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    del whole
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        _, notes = decode_latents(pipe.vae, latents)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "in tiles of" in notes[0]

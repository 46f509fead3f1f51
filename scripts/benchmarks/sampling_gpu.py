"""Seconds and peak memory of every method with SDXL's shapes, where there is a CUDA device; used by bench_sampling.

The weights are random: time and memory do not depend on them.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from seecoder.base_model.facts import pooled_width
from seecoder.pipelines.decoding import decode_latents
from seecoder.sampling import (
    DemoFusion,
    HiDiffusion,
    MultiDiffusion,
    RectifiedHR,
    ScaleCrafter,
    sample,
)

NATIVE = 128  # SDXL's side in cells
LIMIT_GIB = 12.0  # of peak memory at 4096


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def autoencoder(channels: tuple[int, ...], **settings: Any) -> Any:
    """An autoencoder with random weights."""
    levels = len(channels)
    settings |= {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
    }
    return AutoencoderKL(**settings).eval().requires_grad_(False)


SDXL_UNET: dict[str, Any] = {
    "sample_size": NATIVE,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def sdxl_networks(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """UNet and autoencoder of SDXL with random weights."""
    with torch.device(device):
        unet: Any = UNet2DConditionModel(**SDXL_UNET).eval().requires_grad_(False)
        vae = autoencoder((128, 256, 512, 512), layers_per_block=2, scaling_factor=0.13025)
    return unet.to(dtype), vae.to(dtype)


GPU_METHODS: dict[str, Callable[[int], Any]] = {
    "plain": lambda scale: None,
    "MultiDiffusion, stride 64": lambda scale: MultiDiffusion(stride=64),
    "DemoFusion, all steps": lambda scale: DemoFusion(skip_dead_steps=False),
    "DemoFusion": lambda scale: DemoFusion(),
    "ScaleCrafter": lambda scale: ScaleCrafter(),
    "HiDiffusion": lambda scale: HiDiffusion(),
    "ScaleCrafter + DemoFusion": lambda scale: [ScaleCrafter(), DemoFusion(use_windows=False)],
    "ScaleCrafter + RectifiedHR": lambda scale: [ScaleCrafter(), RectifiedHR(resize_in="latents")],
    "RectifiedHR": lambda scale: RectifiedHR(resize_in="latents"),
}


def gpu_rows(steps: int) -> list[dict[str, Any]]:
    """Seconds and peak memory of every method at 2048 and 4096, or rows that say "not measured"."""
    if not torch.cuda.is_available():
        return [
            {"method": name, "pixels": 1024 * scale, "seconds": "not measured", "peak_gib": "not measured"}
            for name in GPU_METHODS
            for scale in (2, 4)
        ]
    device, dtype = torch.device("cuda"), torch.bfloat16
    unet, vae = sdxl_networks(device, dtype)
    on_device(unet, vae, "plain", 1, 2)  # the first run chooses kernels and fetches memory
    return [_row(unet, vae, name, scale, steps) for name in GPU_METHODS for scale in (2, 4)]


def _row(unet: Any, vae: Any, name: str, scale: int, steps: int) -> dict[str, Any]:
    """What `on_device` says, or that the memory was not enough: one method must not cost the others' rows."""
    try:
        return on_device(unet, vae, name, scale, steps)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"method": name, "pixels": 1024 * scale, "seconds": "out of memory", "peak_gib": "out of memory"}


@torch.no_grad()
def on_device(unet: Any, vae: Any, name: str, scale: int, steps: int) -> dict[str, Any]:
    """One run with SDXL's interface on the networks' device, sampling and tiled decode timed apart."""
    device, dtype = unet.device, unet.dtype
    width = unet.config.cross_attention_dim
    pooled = pooled_width(unet)
    added = {
        "text_embeds": torch.zeros(1, pooled, device=device, dtype=dtype),
        "time_ids": torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], device=device, dtype=dtype),
    }
    native = unet.config.sample_size
    context = torch.randn(1, 148, width, device=device, dtype=dtype)
    _synchronise(device, reset=True)
    started = time.perf_counter()
    latents = sample(
        lambda x, t, c, **k: unet(x, t, encoder_hidden_states=c, return_dict=False, **k)[0],
        scheduler(),
        latent_shape=(1, 4, scale * native, scale * native),
        native_size=(native, native),
        context=context,
        negative_context=torch.zeros_like(context),
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
        method=GPU_METHODS[name](scale),
        added_conditions=lambda view, branch, size: {"added_cond_kwargs": added},
        unet=unet,
        view_batch_size=4,
    )
    _synchronise(device)
    sampled = time.perf_counter()
    decode_latents(vae, latents.to(dtype))
    _synchronise(device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "method": name,
        "pixels": 1024 * scale,
        "seconds": sampled - started,
        "decode_seconds": time.perf_counter() - sampled,
        "peak_gib": peak,
        "within_limit": None if peak is None else peak <= LIMIT_GIB,
    }


def _synchronise(device: torch.device, *, reset: bool = False) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)

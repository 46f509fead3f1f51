"""Oracle: operations of a SeeCoder training at Stable Diffusion 1.5's shapes, counted in three independent ways.

1. torch's counter over the real modules on the meta device (shapes without numbers), forward and backward.
2. By hand, from the sizes alone: 2 for each multiply-add of convolutions, linear layers and attention, forward only.
3. `train.estimate.costs`, which the plan of a run uses.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seecoder import SeeCoder
from seecoder.base_model.known_bases import base_sizes
from train.estimate.costs import count_costs

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SIZE, WIDTH, TOKENS = 512, 768, 148
LEVELS = (4096, 1024, 256)  # positions of the maps that the decoder reads
SWIN = ((192, 128, 2), (384, 64, 2), (768, 32, 18), (1536, 16, 2))  # width, side of the map, blocks
WINDOW, DECODER_LAYERS, DECODER_FFN, QUERY_LAYERS, QUERY_FFN, LOCAL = 12, 6, 1024, 9, 2048, 144

# What was known before, in GFLOP (10^9) of one picture: counted on the published modules. Their "released" decoder
# computes queries and keys that have no effect on one picture; ours does not (76 forward, 228 with backward, less).
KNOWN = {
    "backbone, forward": 411,
    "decoder (released), forward": 262,
    "decoder (released), forward + backward": 778,
    "decoder (spatial), forward": 262 + 533,
    "decoder (spatial), forward + backward": 778 + 1598,
    "queries, forward": 64,
    "queries, forward + backward": 191,
    "UNet, forward": 809,
    "UNet, forward + backward to the context": 1684,
    "UNet, forward + backward to all weights": 2428,
    "autoencoder, encode": 1117,
    "autoencoder, decode": 2515,
}


def counted(work: Callable[[], Any]) -> float:
    """Operations of `work` in GFLOP, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def by_torch() -> dict[str, float]:
    """Every part of `KNOWN`, by torch's counter on the meta device."""
    rows: dict[str, float] = {}
    with torch.device("meta"):
        encoders = {attention: SeeCoder(decoder_attention=attention) for attention in ("released", "spatial")}
        maps = [torch.empty(1, width, side, side) for width, side, _ in SWIN[1:]]
        decoded = [torch.empty(1, WIDTH, math.isqrt(count), math.isqrt(count), requires_grad=True) for count in LEVELS]
        pixels = torch.empty(1, 3, SIZE, SIZE)
    plain, spatial = encoders["released"], encoders["spatial"]
    rows["backbone, forward"] = counted(lambda: plain.backbone(pixels))
    for name, encoder in (("released", plain), ("spatial", spatial)):
        rows[f"decoder ({name}), forward"] = counted(lambda encoder=encoder: encoder.decoder(maps))
        rows[f"decoder ({name}), forward + backward"] = counted(
            lambda encoder=encoder: _backward(sum(level.sum() for level in encoder.decoder(maps)))
        )
    rows["queries, forward"] = counted(lambda: plain.query_transformer(decoded))
    rows["queries, forward + backward"] = counted(lambda: _backward(plain.query_transformer(decoded).sum()))
    return rows | _base_by_torch(pixels)


def _backward(loss: Any) -> None:
    loss.backward()


def _base() -> tuple[Any, Any]:
    sizes = base_sizes(SD15)
    if sizes is None:
        raise RuntimeError(f"{SD15} is not in the table of bases.")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(dict(sizes.unet))
        vae: Any = AutoencoderKL.from_config(dict(sizes.vae))
    return unet.eval(), vae.eval()


def _unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.empty(1, 4, SIZE // 8, SIZE // 8, device="meta")
    context = torch.empty(1, TOKENS, WIDTH, device="meta", requires_grad=True)
    return latents, torch.zeros(1, dtype=torch.int64, device="meta"), context


def _base_by_torch(pixels: Tensor) -> dict[str, float]:
    unet, vae = _base()
    latents, times, context = _unet_inputs()
    rows = {}
    for name, weights in (("the context", False), ("all weights", True)):
        unet.requires_grad_(weights)
        rows[f"UNet, forward + backward to {name}"] = counted(lambda: _backward(unet(latents, times, context)[0].sum()))
    with torch.no_grad():
        rows["UNet, forward"] = counted(lambda: unet(latents, times, context))
        rows["autoencoder, encode"] = counted(lambda: vae.encode(pixels))
        rows["autoencoder, decode"] = counted(lambda: vae.decode(latents))
    return rows


def by_hand() -> dict[str, float]:
    """Forward passes from the sizes alone; GFLOP."""
    unet, vae = _base()
    latents, times, context = _unet_inputs()
    pixels = torch.empty(1, 3, SIZE, SIZE, device="meta")
    with torch.no_grad():
        rows = {
            "backbone, forward": _swin(),
            "decoder (released), forward": _decoder(spatial=False),
            "decoder (spatial), forward": _decoder(spatial=True),
            "queries, forward": _queries(),
            "UNet, forward": _layers(unet, lambda: unet(latents, times, context)),
            "autoencoder, encode": _layers(vae, lambda: vae.encode(pixels)),
            "autoencoder, decode": _layers(vae, lambda: vae.decode(latents)),
        }
    return {name: value / 1e9 for name, value in rows.items()}


def _swin() -> float:
    total = 2.0 * 128 * 128 * 192 * 48  # 4 x 4 patches of 3 channels
    for stage, (width, side, blocks) in enumerate(SWIN):
        padded = (-(-side // WINDOW) * WINDOW) ** 2
        attention = 2 * padded * 4 * width**2 + 4 * padded * WINDOW**2 * width
        total += blocks * (attention + 2 * side**2 * 8 * width**2)
        if stage:  # four neighbours become one, of twice the former width
            total += 2 * side**2 * (2 * width) * width
    return total


def _decoder(spatial: bool) -> float:
    tokens = sum(LEVELS)
    projections = sum(
        2 * 2 * count * width * WIDTH for count, (width, _, _) in zip(LEVELS, SWIN[1:], strict=True)
    )  # input and lateral
    matrices = 4 if spatial else 2  # the released attention of one picture needs neither query nor key
    layer = 2 * tokens * (matrices * WIDTH**2 + 2 * WIDTH * DECODER_FFN)
    return projections + DECODER_LAYERS * (layer + (4 * tokens**2 * WIDTH if spatial else 0))


def _queries() -> float:
    total = 0.0
    for block in range(QUERY_LAYERS):
        count = LEVELS[block % 3]
        total += 4 * LOCAL * WIDTH**2 + 4 * count * WIDTH**2 + 4 * LOCAL * count * WIDTH  # reading the map
        total += 8 * TOKENS * WIDTH**2 + 4 * TOKENS**2 * WIDTH + 4 * TOKENS * WIDTH * QUERY_FFN
    return total


@contextmanager
def _hooks(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(module: nn.Module, work: Callable[[], Any]) -> float:
    """Convolutions, linear layers and attention of a network of diffusers, by the shapes that they meet."""
    total = 0

    def add(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal total
        if isinstance(part, nn.Conv2d):
            area = part.kernel_size[0] * part.kernel_size[1]
            total += 2 * output.numel() * part.in_channels // part.groups * area
        elif isinstance(part, nn.Linear):
            total += 2 * output.numel() * part.in_features
        elif isinstance(part, Attention):
            states = args[0] if args else kwargs["hidden_states"]
            other = kwargs.get("encoder_hidden_states")
            count = math.prod(states.shape[2:]) if states.ndim == 4 else states.shape[1]
            total += 4 * count * (count if other is None else other.shape[1]) * part.inner_dim

    with _hooks(module, add):
        work()
    return float(total)


def per_picture(attention: str, cached: bool, checkpointed: bool = False) -> float:
    """GFLOP of one picture at Stable Diffusion 1.5's shapes, by `train.estimate.costs`.

    Args:
        attention: Of the decoder: "released" or "spatial".
        cached: Latents come from the shards.
        checkpointed: Count the decoder's and the queries' second forward pass.
    """
    sizes = base_sizes(SD15)
    if sizes is None:
        raise RuntimeError(f"{SD15} is not in the table of bases.")
    options = {
        "encoder": {"decoder_attention": attention},
        "gradient_checkpointing": ("encoder",) if checkpointed else (),
    }
    costs = count_costs(options, sizes, SIZE, cached={"autoencoder": float(cached)})
    return costs.total_flops / 1e9


def table() -> list[dict[str, Any]]:
    """Rows of name, what was known, by torch's counter, by hand; in GFLOP, None where a way does not apply."""
    torch_rows, hand_rows = by_torch(), by_hand()
    return [
        {"part": name, "known": KNOWN.get(name), "counter": torch_rows[name], "by_hand": hand_rows.get(name)}
        for name in torch_rows
    ]

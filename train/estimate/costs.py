"""What a SeeCoder training costs, counted by running the real networks on the meta device: shapes without numbers.

Operations are 2 for each multiply-add. Memory is what a caching allocator without fragmentation would hold: every
tensor that comes to life while the step runs, until it dies. Attention is taken to keep no weights (flash attention).
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from data.shards.caching.moments import encode_moments
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.loading import DTYPES
from seecoder.encoder.model import SeeCoder
from train.estimate.known_bases import BaseSizes

_LOW, _FULL = torch.bfloat16, torch.float32
_AUTOCAST = {"linear": _LOW, "conv2d": _LOW, "layer_norm": _FULL, "group_norm": _FULL}


@dataclass(frozen=True)
class Costs:
    """Costs of a training step.

    Attributes:
        trained: Parameters that the optimizer holds.
        frozen: Frozen parameters by part: "backbone", "unet", "vae", and "encoder", what of it has no effect.
        flops: Floating-point operations of one picture, by part, recomputed activations included; of what is cached for
            some pictures, the mean.
        activation_bytes: Most memory that one picture's tensors hold at once, weights and gradients left out.
        encoding: Operations of "backbone" and "autoencoder" on a picture for which nothing is cached.
    """

    trained: int
    frozen: Mapping[str, int]
    flops: Mapping[str, int]
    activation_bytes: int
    encoding: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_flops(self) -> int:
        """Operations of one picture."""
        return sum(self.flops.values())


class Counter(TorchDispatchMode):
    """Counts operations by phase, and live memory."""

    def __init__(self):
        super().__init__()
        self.flops: dict[str, int] = defaultdict(int)
        self.phase = ""
        self.live = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.flops[self.phase] += int(count)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return result

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it dies."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        """Count under another name for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class _FlashAttention(torch.autograd.Function):
    """Attention's operations and the tensors that it keeps, without its weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counter: Counter) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.pairs, ctx.counter = math.prod(query.shape[:-1]) * key.shape[-2], counter
        counter.flops[counter.phase] += 2 * ctx.pairs * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value, _ = ctx.needs_input_grad  # the first layers that see the context have no query's
        through_weights = of_query or of_key
        width = (of_query + of_key) * query.shape[-1] + (of_value + through_weights) * value.shape[-1]
        ctx.counter.flops[ctx.counter.phase] += 2 * ctx.pairs * width
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _Numerics:
    """Flash attention, and autocast's casts, which the meta device does not have.

    Autocast keeps its casts of trained weights for the whole step; their memory is counted apart, in `cast_bytes`.
    """

    def __init__(self, counter: Counter, mixed: bool):
        self.counter = counter
        self.mixed = mixed
        self.cast_bytes = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the functions, recomputation in the backward pass included (a torch function mode ends there)."""
        changed: dict[str, Any] = {"scaled_dot_product_attention": self._attend}
        if self.mixed:
            for name, dtype in _AUTOCAST.items():
                changed[name] = self._in_dtype(getattr(F, name), dtype)
        with patch.multiple(F, **changed):
            yield

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        if self.mixed:
            query, key, value = (self._cast(tensor, torch.bfloat16) for tensor in (query, key, value))
        return _FlashAttention.apply(query, key, value, self.counter)

    def _in_dtype(self, function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(
                *(self._cast(value, dtype) for value in args),
                **{name: self._cast(value, dtype) for name, value in kwargs.items()},
            )

        return run

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and value.requires_grad:
            self.cast_bytes += value.numel() * dtype.itemsize
        return value.to(dtype)


def count_costs(
    encoder_config: Mapping[str, Any],
    sizes: BaseSizes,
    image_size: int,
    *,
    mixed: bool = True,
    frozen_dtype: str = "bfloat16",
    vae_dtype: str = "float32",
    gradient_checkpointing: tuple[str, ...] = (),
    cached_latents: float = 0.0,
    cached_maps: float = 0.0,
    encoder_size: int | None = None,
) -> Costs:
    """Count one picture's forward and backward pass.

    Args:
        encoder_config: Arguments of `SeeCoder`.
        sizes: The base.
        image_size: Height and width of the picture.
        mixed: Autocast of the trained parts to 16 bits.
        frozen_dtype: Dtype of UNet and backbone, a key of `seecoder.base_model.loading.DTYPES`.
        vae_dtype: Dtype of the autoencoder.
        gradient_checkpointing: "encoder", "unet": what recomputes activations.
        cached_latents: Share of pictures whose latents come from the shards; the autoencoder does not run for them.
        cached_maps: Share of pictures whose maps do; the backbone does not run for them.
        encoder_size: Height and width at which the encoder sees the picture, if another.
    """
    with torch.device("meta"):
        encoder = SeeCoder(**encoder_config)
        unet: Any = nn.Module.to(_make(UNet2DConditionModel, sizes.unet), DTYPES[frozen_dtype])
        vae: Any = nn.Module.to(_make(AutoencoderKL, sizes.vae), DTYPES[vae_dtype])
    trained = {id(weight): weight.numel() for weight in encoder.trainable_parameters()}
    for module in (unet, vae):
        module.eval().requires_grad_(False)
    for weight in encoder.parameters():
        weight.requires_grad_(id(weight) in trained)
    encoder.train()
    encoder.backbone.to(DTYPES[frozen_dtype])
    for name in gradient_checkpointing:
        {"encoder": encoder, "unet": unet}[name].enable_gradient_checkpointing()
    counter = Counter()
    sides = (image_size, encoder_size or image_size)
    maps, encoding = _encoders(encoder, vae, sides, mixed)
    networks = encoder, unet, None if cached_latents >= 1 else vae
    cast_bytes = _run(networks, maps if cached_maps >= 1 else None, sizes, sides, counter, mixed)
    flops = dict(counter.flops)
    for name, cached in (("autoencoder", cached_latents), ("backbone", cached_maps)):
        if 0 < cached < 1:  # a batch may hold none of the cached ones, so that memory has to be there
            flops[name] = round((1 - cached) * flops[name])
    whole = {"backbone": encoder.backbone, "unet": unet, "vae": vae}
    frozen = {name: sum(weight.numel() for weight in module.parameters()) for name, module in whole.items()}
    frozen["encoder"] = (
        sum(weight.numel() for weight in encoder.parameters()) - frozen["backbone"] - sum(trained.values())
    )
    return Costs(sum(trained.values()), frozen, flops, max(0, counter.peak - cast_bytes), encoding)


def _make(kind: Any, config: Mapping[str, Any]) -> Any:
    return kind.from_config(dict(config))


def _encoders(encoder: Any, vae: Any, sides: tuple[int, int], mixed: bool) -> tuple[list[Tensor], dict[str, int]]:
    """Maps of one picture of `sides` (whole, as the encoder sees it), and what the frozen encoders do for it."""
    size, seen = sides
    counter = Counter()
    with counter, _Numerics(counter, mixed).applied(), torch.no_grad():
        with counter.counting("backbone"):
            maps = encoder.compute_maps(torch.empty(1, 3, seen, seen, device="meta"))
        with counter.counting("autoencoder"):
            encode_moments(vae, torch.empty(1, 3, size, size, device="meta"))
    return maps, dict(counter.flops)


def _encode(encoder: Any, cached: list[Tensor] | None, side: int, counter: Counter) -> Any:
    """Context of one picture, from its pixels or from maps in half precision like `cached`."""
    if cached is None:
        pixels = torch.empty(1, 3, side, side, device="meta")
        with counter.counting("backbone"):
            maps = encoder.compute_maps(pixels)
    else:
        maps = [torch.empty(level.shape, dtype=torch.float16, device="meta") for level in cached]
    with counter.counting("decoder and queries forward"):
        return encoder.encode_maps(maps)


def _run(
    networks: tuple[Any, Any, Any],
    maps: list[Tensor] | None,
    sizes: BaseSizes,
    sides: tuple[int, int],
    counter: Counter,
    mixed: bool,
) -> int:
    """One picture of `sides` (whole, as the encoder sees it) through `SeeCoderStage.loss` and back.

    Returns:
        Bytes of cast weights.
    """
    (encoder, unet, vae), (size, seen) = networks, sides
    latent = size // sizes.latent_factor
    pixels = torch.empty(1, 3, size, size, device="meta")
    noisy = torch.empty(1, unet.config["in_channels"], latent, latent, device="meta", dtype=unet.dtype)
    times = torch.zeros(1, dtype=torch.int64, device="meta")
    numerics = _Numerics(counter, mixed)
    with counter, numerics.applied():
        output = _encode(encoder, maps, seen, counter)
        if vae is not None:
            with counter.counting("autoencoder"):
                encode_moments(vae, pixels)
        with counter.counting("unet forward"):
            pooled = None if output.pooled is None else output.pooled.to(unet.dtype)
            extra = {} if pooled is None else added_conditions(pooled, (size, size), (0, 0), (size, size))
            context = output.context.to(unet.dtype)
            predicted = unet(noisy, times, encoder_hidden_states=context, **extra).sample.float()
            loss = predicted.square().mean()
        with counter.counting("unet backward"):  # the pooled vector comes from the context, so this passes through it
            (gradient,) = torch.autograd.grad(loss, [output.context])
        del loss, predicted, extra, context, pooled
        with counter.counting("decoder and queries backward"):
            torch.autograd.backward([output.context], [gradient])
    return numerics.cast_bytes

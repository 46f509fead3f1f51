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
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from data.shards.caching.moments import encode_moments
from seecoder.base_model.added_conditions import added_conditions
from seecoder.base_model.facts import pixels_per_cell
from seecoder.base_model.known_bases import BaseSizes
from seecoder.base_model.loading import DTYPES
from seecoder.encoder.model import SeeCoder
from seecoder.replacing import replaced
from train.frozen.held_weights import held_bytes, hold_weights
from train.optimizers import is_matrix

_LOW, _FULL = torch.bfloat16, torch.float32
_AUTOCAST = {"linear": _LOW, "conv2d": _LOW, "layer_norm": _FULL, "group_norm": _FULL}


@dataclass(frozen=True)
class Costs:
    """Costs of a training step.

    Attributes:
        trained: Parameters that the optimizer holds.
        frozen: Frozen parameters by part: "backbone", "unet", "vae", and "encoder", what of it has no effect.
        frozen_bytes: Their memory.
        flops: Operations of one picture by part, with nothing cached, recomputed activations included.
        activation_bytes: Most memory that one picture's tensors hold at once, weights and gradients left out.
        cached: Fraction of the pictures for which "autoencoder" or "backbone" does not run.
        matrices: Trained parameters that `train.optimizers.is_matrix` is true of.
    """

    trained: int
    frozen: Mapping[str, int]
    frozen_bytes: int
    flops: Mapping[str, int]
    activation_bytes: int
    cached: Mapping[str, float] = field(default_factory=dict)
    matrices: int = 0

    @property
    def mean_flops(self) -> dict[str, int]:
        """Operations by part on the mean of all pictures."""
        return {part: round((1 - self.cached.get(part, 0.0)) * count) for part, count in self.flops.items()}

    @property
    def total_flops(self) -> int:
        """Operations of the mean picture."""
        return sum(self.mean_flops.values())


class _Counter(TorchDispatchMode):
    """Counts operations by phase and live memory, with flash attention and autocast, which the meta device lacks.

    A counter of our own: torch's `FlopCounterMode` counts no memory, and attention only as the meta device does it,
    with all of its weights. Autocast keeps its casts of trained weights for the whole step; `cast_bytes` counts them.
    """

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.flops: dict[str, int] = defaultdict(int)
        self.phase = ""
        self.live = self.peak = self.cast_bytes = 0
        self._mixed = mixed
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.flops[self.phase] += int(count)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it dies."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self._hold(storage.nbytes())
            weakref.finalize(storage, self._hold, -storage.nbytes())

    def _hold(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count, with the functions replaced also where they are run again backward (a torch function mode is not)."""
        changed: dict[str, Any] = {"scaled_dot_product_attention": self._attend}
        if self._mixed:
            changed |= {name: partial(self._in_dtype, getattr(F, name), dtype) for name, dtype in _AUTOCAST.items()}
        with replaced(F, **changed), self:
            yield

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        if self._mixed:  # rebound, so that what was cast can die
            query, key, value = (self._cast(tensor, _LOW) for tensor in (query, key, value))
        return _FlashAttention.apply(query, key, value, self)

    def _in_dtype(self, function: Callable[..., Any], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
        named = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return function(*(self._cast(value, dtype) for value in args), **named)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and value.requires_grad:
            self.cast_bytes += value.numel() * dtype.itemsize
        return value.to(dtype)


class _FlashAttention(torch.autograd.Function):
    """Attention's operations and the tensors that it keeps, without its weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counter: _Counter) -> Tensor:
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


def count_costs(
    options: Mapping[str, Any],
    sizes: BaseSizes,
    image_size: int,
    mixed: bool = True,
    cached: Mapping[str, float] | None = None,
) -> Costs:
    """Count one picture's forward and backward pass.

    Args:
        options: Arguments of `train.stages.seecoder.SeeCoderStage`, of which "encoder" has to be there.
        sizes: The base.
        image_size: Height and width of the picture.
        mixed: Autocast of the trained parts to 16 bits.
        cached: Fraction of the pictures for which "autoencoder" or "backbone" does not run, by its name.
    """
    encoder, unet, vae = networks = _networks(options, sizes)
    sides, cached = (image_size, options.get("encoder_size") or image_size), cached or {}
    pixels, seen = (torch.empty(1, 3, side, side, device="meta") for side in sides)
    encoders, step = _Counter(mixed), _Counter(mixed)
    with encoders.counting(), torch.no_grad():
        encoders.phase = "backbone"
        maps = encoder.compute_maps(seen)
        encoders.phase = "autoencoder"
        encode_moments(vae, pixels)
    # A batch may hold none of the pictures that are cached, so there has to be memory for the others.
    _train(networks, pixels, seen if cached.get("backbone", 0) < 1 else maps, cached.get("autoencoder", 0) < 1, step)
    trained = sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad)
    matrices = sum(weight.numel() for name, weight in encoder.trainable_named_parameters() if is_matrix(name, weight))
    weights = {"backbone": encoder.backbone, "unet": unet, "vae": vae, "encoder": encoder}
    frozen = {name: sum(weight.numel() for weight in module.parameters()) for name, module in weights.items()}
    frozen["encoder"] -= frozen["backbone"] + trained
    form, offload = options.get("frozen_weights"), options.get("offload") or ()
    frozen_bytes = sum(weight.nbytes for weight in encoder.parameters() if not weight.requires_grad)
    frozen_bytes += held_bytes(unet, form, offload="unet" in offload) + held_bytes(vae, None, offload="vae" in offload)
    activation_bytes = max(0, step.peak - step.cast_bytes)
    return Costs(trained, frozen, frozen_bytes, {**step.flops, **encoders.flops}, activation_bytes, cached, matrices)


def _networks(options: Mapping[str, Any], sizes: BaseSizes) -> tuple[Any, Any, Any]:
    """Encoder, UNet and autoencoder as the stage has them, without numbers."""
    dtype, vae_dtype = (DTYPES[options.get(name, "float32")] for name in ("frozen_dtype", "vae_dtype"))
    with torch.device("meta"):
        encoder = SeeCoder(**options["encoder"])
        unet: Any = UNet2DConditionModel.from_config(dict(sizes.unet))
        vae: Any = AutoencoderKL.from_config(dict(sizes.vae))
    for module in (encoder, unet, vae):
        module.eval().requires_grad_(False)
    for weight in encoder.train().trainable_parameters():
        weight.requires_grad_(True)
    for module, its_dtype in ((encoder.backbone, dtype), (unet, dtype), (vae, vae_dtype)):
        nn.Module.to(module, its_dtype)
    for name in options.get("gradient_checkpointing") or ():
        {"encoder": encoder, "unet": unet}[name].enable_gradient_checkpointing()
    if options.get("frozen_weights") or "unet" in (options.get("offload") or ()):
        hold_weights(unet, None, offload=False)  # what its layers keep for the backward pass is the same in all forms
    return encoder, unet, vae


def _train(
    networks: tuple[Any, Any, Any], pixels: Tensor, seen: Tensor | list[Tensor], encodes: bool, counter: _Counter
) -> None:
    """One picture through `SeeCoderStage.loss` and back; the encoder sees pixels, or cached maps."""
    (encoder, unet, vae), size = networks, pixels.shape[-1]
    side = size // pixels_per_cell(vae)
    noisy = torch.empty(1, unet.config["in_channels"], side, side, device="meta", dtype=unet.dtype)
    times = torch.zeros(1, dtype=torch.int64, device="meta")
    with counter.counting():
        counter.phase = "backbone"
        maps = [level.half() for level in seen] if isinstance(seen, list) else encoder.compute_maps(seen)
        counter.phase = "decoder and queries forward"
        output = encoder.encode_maps(maps)
        del maps
        if encodes:
            counter.phase = "autoencoder"
            encode_moments(vae, pixels)
        counter.phase = "unet forward"
        pooled = None if output.pooled is None else output.pooled.to(unet.dtype)
        extra = {} if pooled is None else added_conditions(pooled, (size, size, 0, 0, size, size))
        predicted = unet(noisy, times, encoder_hidden_states=output.context.to(unet.dtype), **extra).sample.float()
        loss = predicted.square().mean()
        counter.phase = "unet backward"  # the pooled vector comes from the context, so this passes through it
        (gradient,) = torch.autograd.grad(loss, [output.context])
        del loss, predicted, extra, pooled
        counter.phase = "decoder and queries backward"
        torch.autograd.backward([output.context], [gradient])

"""SeeCoder: a picture becomes the tokens that take the place of a prompt's embedding.

"Prompt-Free Diffusion: Taking 'Text' out of Text-to-Image Diffusion Models", arXiv 2305.16223, Sec. 3.2; reference
implementation at SHI-Labs/Prompt-Free-Diffusion@f4295fc. Three parts, each in `seecoder.modules`:

    pixels -> backbone -> maps of three resolutions -> decoder -> maps of one width -> query transformer -> context

What differs from the reference: any timm pyramid can be the backbone; the decoder's attention is a choice (see
`Decoder`); the jitter of the positional encoding is an argument instead of a draw from NumPy's global state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.outputs import BaseOutput
from torch import nn

from seecoder.encoder.backbones.pyramid import PlainBackbone, PyramidBackbone, SimpleFeaturePyramid, build_backbone
from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.encoder.files import EncoderFiles
from seecoder.encoder.pixel_decoder import Decoder, DecoderAttention
from seecoder.encoder.query_transformer import QueryTransformer

__all__ = ["MIN_SIDE", "SeeCoder", "SeeCoderOutput"]

MIN_SIDE = 32  # pixels; the coarsest map of the backbone would be empty below
_NUM_LEVELS = 3  # the decoder reads the last three maps of the backbone
_EMBEDDINGS = ("level_embedding", "queries", "query_positions")


@dataclass
class SeeCoderOutput(BaseOutput):
    """What `SeeCoder.encode` gives.

    Attributes:
        context: (B, num_global_queries + num_local_queries, context_dim) tokens, global ones first.
        pooled: (B, pooled_dim), or None for an encoder without `pooled_dim`.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None


class SeeCoder(EncoderFiles, ModelMixin, ConfigMixin):
    """The image-context encoder.

    `encoder(pixels)` maps (B, 3, H, W) in [0, 1] to a context (B, 148, 768) at the default sizes, for any H and W from
    32 up. `encoder.encode(pixels)` gives the pooled vector, too. What one picture gives does not depend on the rest of
    the batch.

    The backbone is frozen from the start: it asks for no gradient and stays in eval mode whatever `train()` is told
    (see `freeze_backbone`). `trainable_parameters()` is what an optimiser takes.

    `torch.compile(encoder, fullgraph=True, dynamic=False)` makes one graph for every picture size. Compiling for sizes
    that change (the default from the second size on) works out windows symbolically, which takes many minutes.

    Args:
        backbone: a model name of timm: a Swin (exact against the published encoder), any other pyramid, or a plain ViT.
        backbone_args: overrides for timm's constructor, e.g. `embed_dim`, `depths`, `num_heads`, `window_size` of a
            Swin.
        context_dim: width of decoder, queries and context; the `cross_attention_dim` of the UNet.
        num_heads: heads of every attention outside the backbone.
        decoder_layers: transformer layers of the decoder.
        decoder_ffn_dim: hidden width of their feed-forward parts.
        decoder_dropout: dropout probability of the decoder, in training.
        decoder_attention: "spatial", over positions as in the paper, or "released", as in the released code at one
            picture.
        query_layers: blocks of the query transformer.
        query_ffn_dim: hidden width of their feed-forward parts.
        num_global_queries: queries that see the picture only through the local ones; they come first in the context.
        num_local_queries: queries that read the maps.
        position_aware: add a positional encoding to the maps' keys (SeeCoder-PA).
        pooled_dim: width of the pooled vector that SDXL wants beside the context (1280), a linear map of the mean
            global query; None for none.
        image_mean: subtracted from the pixels, per channel. The default (with `image_std`) leaves pixels as they are,
            which is what the released weights expect. For ImageNet's statistics: (0.485, 0.456, 0.406).
        image_std: what the pixels are divided by, per channel. For ImageNet's statistics: (0.229, 0.224, 0.225).

    Raises:
        ValueError: an argument that does not fit the others.
    """

    __module__ = "seecoder.encoder"

    _supports_gradient_checkpointing = True

    backbone: SwinBackbone | PyramidBackbone | PlainBackbone
    decoder: Decoder
    query_transformer: QueryTransformer

    @register_to_config
    def __init__(
        self,
        backbone: str = "swin_large_patch4_window12_384",
        backbone_args: dict[str, Any] | None = None,
        context_dim: int = 768,
        num_heads: int = 8,
        decoder_layers: int = 6,
        decoder_ffn_dim: int = 1024,
        decoder_dropout: float = 0.1,
        decoder_attention: DecoderAttention = "spatial",
        query_layers: int = 9,
        query_ffn_dim: int = 2048,
        num_global_queries: int = 4,
        num_local_queries: int = 144,
        position_aware: bool = False,
        pooled_dim: int | None = None,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        _check_sizes(context_dim, num_heads, num_global_queries, num_local_queries, pooled_dim)
        if query_layers < 1 or decoder_layers < 0:
            raise ValueError(
                f"`query_layers`={query_layers}, `decoder_layers`={decoder_layers}: at least 1 and 0 are needed."
            )
        self._mean, self._std = _channel_values("image_mean", image_mean), _channel_values("image_std", image_std)
        if not all(value > 0 for value in self._std):
            raise ValueError(f"`image_std`={tuple(image_std)} must be above zero.")
        self.backbone = build_backbone(backbone, backbone_args)
        channels = self.backbone.channels
        self.feature_pyramid: SimpleFeaturePyramid | None = None
        if self.backbone.is_plain:
            self.feature_pyramid = SimpleFeaturePyramid(channels[-1])
            channels = self.feature_pyramid.channels
        self._num_levels = min(len(channels), _NUM_LEVELS)
        self.decoder = Decoder(
            channels[-self._num_levels :],
            context_dim,
            num_heads,
            decoder_layers,
            decoder_ffn_dim,
            decoder_dropout,
            decoder_attention,
        )
        self.query_transformer = QueryTransformer(
            self._num_levels,
            context_dim,
            num_heads,
            query_layers,
            query_ffn_dim,
            num_global_queries,
            num_local_queries,
            position_aware,
        )
        self.pooled_projection = nn.Linear(context_dim, pooled_dim) if pooled_dim else None
        self.freeze_backbone()

    def __getattr__(self, name: str) -> Any:
        # diffusers answers `encoder.backbone` with the configuration's entry of that name; the module is meant.
        modules = self.__dict__.get("_modules", {})
        return modules[name] if name in modules else super().__getattr__(name)

    # ---------------------------------------------------------------------------------------------------- encoding

    def forward(self, pixels: torch.Tensor, position_jitter: torch.Tensor | None = None) -> torch.Tensor:
        """Encode pictures as contexts.

        Args:
            pixels: (B, 3, H, W), floating point in [0, 1], H and W at least 32; cast to the encoder's dtype.
            position_jitter: offsets from `draw_position_jitter`, for training a position-aware encoder; None for none.

        Returns:
            (B, num_global_queries + num_local_queries, context_dim).

        Raises:
            TypeError: `pixels` are integers.
            ValueError: a shape that cannot be encoded, or jitter for an encoder without positions.
        """
        return self.encode(pixels, position_jitter).context

    def encode(self, pixels: torch.Tensor, position_jitter: torch.Tensor | None = None) -> SeeCoderOutput:
        """Encode pictures as contexts and, if the encoder has `pooled_dim`, pooled vectors.

        Args:
            pixels: as for `forward`.
            position_jitter: as for `forward`.

        Returns:
            Context and pooled vector.

        Raises:
            TypeError: `pixels` are integers.
            ValueError: a shape that cannot be encoded, or jitter for an encoder without positions.
        """
        self._check_input(pixels, position_jitter)
        return self.encode_maps(self.compute_maps(pixels), position_jitter)

    def compute_maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Run the backbone: the first half of `encode`, the one that training can keep.

        Args:
            pixels: as for `forward`, not checked.

        Returns:
            Maps (B, C, h, w) that `encode_maps` reads, finest first, in the backbone's dtype.
        """
        maps = list(self.backbone(self._normalise(pixels)))
        return maps if self.feature_pyramid is not None else maps[-self._num_levels :]

    def encode_maps(self, maps: Sequence[torch.Tensor], position_jitter: torch.Tensor | None = None) -> SeeCoderOutput:
        """Decode and query the backbone's maps: the second half of `encode`.

        Args:
            maps: as `compute_maps` returns them.
            position_jitter: as for `forward`, not checked.

        Returns:
            Context and pooled vector.
        """
        # A frozen backbone may run in another dtype than the trained parts.
        levels = [level.to(self.query_transformer.queries.dtype) for level in maps]
        if self.feature_pyramid is not None:
            levels = self.feature_pyramid(levels)
        context = self.query_transformer(self.decoder(levels[-self._num_levels :]), position_jitter)
        pooled = None
        if self.pooled_projection is not None:
            pooled = self.pooled_projection(context[:, : self.query_transformer.num_global].mean(dim=1))
        return SeeCoderOutput(context=context, pooled=pooled)

    def draw_position_jitter(
        self, generator: torch.Generator | None = None, batch_size: int | None = None
    ) -> torch.Tensor | None:
        """Draw the offsets that training adds to the positions: uniform in [-0.5, 0.5] cells, one pair a level.

        Args:
            generator: a CPU generator, so that the draw is the trainer's to repeat.
            batch_size: one set of offsets a picture; None for one set for the whole batch, as in the published code.

        Returns:
            (L, 2) or (batch_size, L, 2) on the CPU, or None if the encoder is not position-aware.
        """
        if self.query_transformer.position_encoding is None:
            return None
        shape = (self._num_levels, 2) if batch_size is None else (batch_size, self._num_levels, 2)
        return torch.rand(shape, generator=generator) - 0.5

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Standardise in the precision given, then cast to the backbone's dtype."""
        if any(self._mean) or any(value != 1 for value in self._std):
            channels = [
                (pixels[:, i] - mean) / std for i, (mean, std) in enumerate(zip(self._mean, self._std, strict=True))
            ]
            pixels = torch.stack(channels, dim=1)
        return pixels.to(next(self.backbone.parameters()).dtype)

    def _check_input(self, pixels: torch.Tensor, position_jitter: torch.Tensor | None) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"`pixels` has shape {tuple(pixels.shape)}; expected (B, 3, H, W).")
        if not pixels.is_floating_point():
            raise TypeError(
                f"`pixels` has dtype {pixels.dtype}; expected floating point in [0, 1]. Divide bytes by 255."
            )
        if min(pixels.shape[-2:]) < MIN_SIDE:
            height, width = pixels.shape[-2:]
            raise ValueError(
                f"`pixels` are {height}x{width}; both sides must be at least {MIN_SIDE} pixels. Enlarge them."
            )
        if position_jitter is None:
            return
        if self.query_transformer.position_encoding is None:
            raise ValueError("`position_jitter` has no effect on an encoder with position_aware=False; leave it out.")
        expected = {(self._num_levels, 2), (pixels.shape[0], self._num_levels, 2)}
        if tuple(position_jitter.shape) not in expected:
            raise ValueError(f"`position_jitter` has shape {tuple(position_jitter.shape)}; expected one of {expected}.")

    # ---------------------------------------------------------------------------------------------------- training

    def freeze_backbone(self, frozen: bool = True) -> Self:
        """Freeze the backbone (the state after construction and loading), or open it for training.

        A frozen backbone asks for no gradient and stays in eval mode, so that neither batch statistics nor stochastic
        depth change what it computes.

        Returns:
            The encoder.
        """
        self._backbone_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for a frozen backbone."""
        super().train(mode)
        if self._backbone_frozen:
            self.backbone.eval()
        return self

    def trainable_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that training moves: all but a frozen backbone's and those that have no effect on the context.

        Without effect are, with decoder_attention="released", the decoder's query and key matrices: weight decay would
        shrink them although nothing pulls on them, and they have to go back into the released layout as they came.
        """
        idle = {id(parameter) for parameter in self.decoder.idle_parameters()}
        idle |= {id(parameter) for parameter in self.backbone.idle_parameters(self._num_levels)}
        for name, parameter in self.named_parameters():
            if id(parameter) not in idle and not (self._backbone_frozen and name.startswith("backbone.")):
                yield name, parameter

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List the parameters for an optimiser; all in one group they are the published recipe."""
        return [parameter for _, parameter in self.trainable_named_parameters()]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Split the trainable parameters for an optimiser with weight decay.

        Args:
            weight_decay: for matrices and convolutions; biases, norms, queries and embeddings get none.

        Returns:
            Two groups as `torch.optim` takes them.
        """
        decayed, kept = [], []
        for name, parameter in self.trainable_named_parameters():
            is_matrix = parameter.ndim > 1 and not name.endswith((*_EMBEDDINGS, "relative_position_bias_table"))
            (decayed if is_matrix else kept).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _check_sizes(dim: int, heads: int, num_global: int, num_local: int, pooled_dim: int | None) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"`context_dim`={dim} is not a multiple of `num_heads`={heads}.")
    if num_local < 1 or num_global < 0:
        raise ValueError(
            f"`num_local_queries`={num_local}, `num_global_queries`={num_global}: at least 1 and 0 are needed; local "
            "queries are the ones that see the picture."
        )
    if pooled_dim is not None and (pooled_dim < 1 or num_global < 1):
        raise ValueError(f"`pooled_dim`={pooled_dim} needs at least one global query and must be positive.")


def _channel_values(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) != 3:
        raise ValueError(f"`{name}`={tuple(values)} has {len(values)} values; expected three, one a colour channel.")
    return tuple(float(value) for value in values)

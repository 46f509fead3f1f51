"""SeeCoder: a picture becomes the tokens that take the place of a prompt's embedding.

"Prompt-Free Diffusion: Taking 'Text' out of Text-to-Image Diffusion Models", arXiv 2305.16223, Sec. 3.2; reference
implementation at SHI-Labs/Prompt-Free-Diffusion@f4295fc. Three parts, each in a module of its own:

    pixels -> backbone -> maps of three resolutions -> decoder -> maps of one width -> query transformer -> context

What differs from the reference: any timm pyramid can be the backbone; the decoder's attention is a choice (see
`Decoder`); the jitter of the positional encoding is an argument instead of a draw from NumPy's global state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.outputs import BaseOutput
from torch import nn

from seecoder.checks import number, optional, require, some_of, whole
from seecoder.encoder.backbones.pretrained_weights import BackboneCoverage, load_pretrained
from seecoder.encoder.backbones.swin import SwinBackbone
from seecoder.encoder.backbones.timm_backbones import (
    PlainBackbone,
    PyramidBackbone,
    SimpleFeaturePyramid,
    build_backbone,
)
from seecoder.encoder.input_checks import MIN_SIDE, check_mask, check_pixels, check_position_jitter, standardise
from seecoder.encoder.official import OfficialLayout
from seecoder.encoder.pixel_decoder import Decoder, DecoderAttention
from seecoder.encoder.query_transformer import QueryTransformer
from seecoder.encoder.saved_folders import SavedInFolders
from seecoder.images.scaling import ENCODED_SIZE

_NUM_LEVELS = 3  # the decoder reads the last three maps of the backbone
_RULES = {
    "context_dim": whole(1),
    "num_heads": whole(1),
    "decoder_layers": whole(0),
    "query_layers": whole(1),
    "num_global_queries": whole(0),
    "num_local_queries": whole(1),
    "pooled_dim": optional(whole(1)),
    "image_size": whole(MIN_SIDE),
    "guidance_scale": number(),
    "image_mean": some_of(number(), "three numbers, one a colour channel", minimum=3, maximum=3),
    "image_std": some_of(
        number(0, above_minimum=True), "three numbers above zero, one a colour channel", minimum=3, maximum=3
    ),
}


@dataclass
class SeeCoderOutput(BaseOutput):
    """What `SeeCoder.encode` gives.

    Attributes:
        context: (B, num_global_queries + num_local_queries, context_dim) tokens, global ones first.
        pooled: (B, pooled_dim), or None for an encoder without `pooled_dim`.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None


class SeeCoder(SavedInFolders, OfficialLayout):
    """The image-context encoder.

    `encoder(pixels)` maps (B, 3, H, W) in [0, 1] to a context (B, 148, 768) at the default sizes, for any H and W from
    32 up. `encoder.encode(pixels)` gives the pooled vector, too. What one picture gives does not depend on the rest of
    the batch.

    The backbone is frozen from the start: it asks for no gradient and stays in eval mode whatever `train()` is told
    (see `freeze_backbone`). `trainable_parameters()` is what an optimiser takes.

    `torch.compile(encoder, fullgraph=True, dynamic=False)` makes one graph for every picture size. Compiling for sizes
    that change (the default from the second size on) works out windows symbolically, which takes many minutes.

    Args:
        backbone: A model name of timm: a Swin (exact against the published encoder), any other pyramid, or a plain ViT.
        backbone_args: Overrides for timm's constructor, e.g. `embed_dim`, `depths`, `num_heads`, `window_size` of a
            Swin.
        context_dim: Width of decoder, queries and context; the `cross_attention_dim` of the UNet.
        num_heads: Heads of every attention outside the backbone.
        decoder_layers: Transformer layers of the decoder.
        decoder_ffn_dim: Hidden width of their feed-forward parts.
        decoder_dropout: Dropout probability of the decoder, in training.
        decoder_attention: "spatial", over positions as in the paper, or "released", as in the released code at one
            picture.
        query_layers: Blocks of the query transformer.
        query_ffn_dim: Hidden width of their feed-forward parts.
        num_global_queries: Queries that see the picture only through the local ones; they come first in the context.
        num_local_queries: Queries that read the maps.
        position_aware: Add a positional encoding to the maps' keys (SeeCoder-PA).
        positions_in_values: Add it to their values, too, so that a token can say where what it read lies. The released
            files have no such encoder.
        pooled_dim: Width of the pooled vector that SDXL wants beside the context (1280), a linear map of the mean
            global query; None for none.
        image_mean: Subtracted from the pixels, per channel. The default (with `image_std`) leaves pixels as they are,
            which is what the released weights expect. For ImageNet's statistics: (0.485, 0.456, 0.406).
        image_std: What the pixels are divided by, per channel. For ImageNet's statistics: (0.229, 0.224, 0.225).
        image_size: Side in pixels of the square pictures that it was trained on. It changes nothing here; pipelines and
            commands reduce larger pictures to as many pixels.
        guidance_scale: The guidance that suits its contexts; the default of pipelines and commands.
        learned_negative: Whether it comes with a context of its own for "unconditional" (`negative_context`), as the
            Anime variant does; zeros stand for it elsewhere.

    Raises:
        ValueError: An argument is out of its range, or does not fit the others.
    """

    __module__ = "seecoder.encoder"  # saved pipelines name the class by this path

    _supports_gradient_checkpointing = True

    backbone: SwinBackbone | PyramidBackbone | PlainBackbone
    negative_context: torch.Tensor | None
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
        positions_in_values: bool = False,
        pooled_dim: int | None = None,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        image_size: int = ENCODED_SIZE,
        guidance_scale: float = 2.0,
        learned_negative: bool = False,
    ) -> None:
        super().__init__()
        for name, rule in _RULES.items():
            require(name, self.config[name], rule, owner="SeeCoder")
        if context_dim % num_heads:
            raise ValueError(f"`context_dim`={context_dim} must be a multiple of `num_heads`={num_heads}.")
        if positions_in_values and not position_aware:
            raise ValueError("`positions_in_values`=True must come with `position_aware`=True.")
        if pooled_dim and not num_global_queries:
            raise ValueError(f"`num_global_queries`=0 must be from 1 up with `pooled_dim`={pooled_dim}.")
        self._mean, self._std = tuple(map(float, image_mean)), tuple(map(float, image_std))
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
            positions_in_values,
        )
        self.pooled_projection = nn.Linear(context_dim, pooled_dim) if pooled_dim else None
        tokens = num_global_queries + num_local_queries
        self.register_buffer("negative_context", torch.zeros(1, tokens, context_dim) if learned_negative else None)
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
            position_jitter: Offsets from `draw_position_jitter`, for training a position-aware encoder; None for none.

        Returns:
            (B, num_global_queries + num_local_queries, context_dim).

        Raises:
            TypeError: `pixels` are integers.
            ValueError: A shape that cannot be encoded, or jitter for an encoder without positions.
        """
        return self.encode(pixels, position_jitter).context

    def encode(
        self,
        pixels: torch.Tensor,
        position_jitter: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> SeeCoderOutput:
        """Encode pictures as contexts and, if the encoder has `pooled_dim`, pooled vectors.

        Args:
            pixels: (B, 3, H, W), floating point in [0, 1], H and W at least 32; cast to the encoder's dtype.
            position_jitter: Offsets from `draw_position_jitter`, for training a position-aware encoder; None for none.
            mask: (B, 1, H, W) in [0, 1], how much each pixel counts; None where all do. What does not count is grey
                to the backbone, and nothing attends to it.

        Returns:
            Context and pooled vector.

        Raises:
            TypeError: `pixels` are integers.
            ValueError: A shape that cannot be encoded, a mask of another, or jitter for an encoder without positions.
        """
        check_pixels(pixels)
        if mask is not None:
            check_mask(mask, pixels)
            pixels = torch.lerp(torch.full_like(pixels, 0.5), pixels, mask.to(pixels))
        if position_jitter is not None:
            position_aware = self.query_transformer.position_encoding is not None
            check_position_jitter(position_jitter, self._num_levels, len(pixels), position_aware=position_aware)
        return self.encode_maps(self.compute_maps(pixels), position_jitter, mask)

    def compute_maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Run the backbone: the first half of `encode`, the one that training can keep.

        Args:
            pixels: (B, 3, H, W) in [0, 1]; not checked.

        Returns:
            Maps (B, C, h, w) that `encode_maps` reads, finest first, in the backbone's dtype.
        """
        # Standardised in the precision given, then cast.
        pixels = standardise(pixels, self._mean, self._std).to(next(self.backbone.parameters()).dtype)
        maps = list(self.backbone(pixels))
        return maps if self.feature_pyramid is not None else maps[-self._num_levels :]

    def encode_maps(
        self,
        maps: Sequence[torch.Tensor],
        position_jitter: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> SeeCoderOutput:
        """Decode and query the backbone's maps: the second half of `encode`.

        Args:
            maps: As `compute_maps` returns them.
            position_jitter: Offsets from `draw_position_jitter`, or None; not checked.
            mask: (B, 1, H, W) in [0, 1], how much each pixel counts, or None; not checked.

        Returns:
            Context and pooled vector.
        """
        # A frozen backbone may run in another dtype than the trained parts.
        levels = [level.to(self.query_transformer.queries.dtype) for level in maps]
        if self.feature_pyramid is not None:
            levels = self.feature_pyramid(levels)
        mask = None if mask is None else mask.to(levels[0])
        context = self.query_transformer(self.decoder(levels[-self._num_levels :], mask), position_jitter, mask)
        pooled = None
        if self.pooled_projection is not None:
            pooled = self.pooled_projection(context[:, : self.query_transformer.num_global].mean(dim=1))
        return SeeCoderOutput(context=context, pooled=pooled)

    def draw_position_jitter(
        self, generator: torch.Generator | None = None, batch_size: int | None = None
    ) -> torch.Tensor | None:
        """Draw the offsets that training adds to the positions: uniform in [-0.5, 0.5] cells, one pair a level.

        Args:
            generator: A CPU generator, so that the draw is the trainer's to repeat.
            batch_size: One set of offsets a picture; None for one set for the whole batch, as in the published code.

        Returns:
            (L, 2) or (batch_size, L, 2) on the CPU, or None if the encoder is not position-aware.
        """
        if self.query_transformer.position_encoding is None:
            return None
        shape = (self._num_levels, 2) if batch_size is None else (batch_size, self._num_levels, 2)
        return torch.rand(shape, generator=generator) - 0.5

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

    # ------------------------------------------------------------------------------------------------------- files

    def load_backbone_weights(self, source: str | Path | Mapping[str, object]) -> BackboneCoverage:
        """Fill the backbone with pretrained weights, for training from scratch.

        Args:
            source: A safetensors file or a folder with one, "timm:NAME" (fetched by timm), or the tensors themselves:
                as timm saves them (`timm.create_model(name, pretrained=True).state_dict()`), as Microsoft's Swin files
                hold them (under "model"), with transformers' names, or a backbone of ours.

        Returns:
            Which keys were filled, which not, and which entries of the source were not needed.

        Raises:
            WeightsError: Any weight of the backbone is left uncovered, except a Swin's output norms (no pretrained file
                has them; they stay as they are), or shapes differ. Nothing is loaded then.
        """
        return load_pretrained(self.backbone, source, name=self.config["backbone"])

    def set_negative_context(self, tokens: torch.Tensor) -> None:
        """Keep a learned context for "unconditional", which is saved with the encoder and which pipelines then use.

        Args:
            tokens: (T, D) or (1, T, D), for instance of the released `anime_ug.pth` (77 tokens); zeros follow up to the
                length of the context, as the released program has it.

        Raises:
            ValueError: Another shape, or more tokens than the context has.
        """
        length, width = self.query_transformer.queries.shape
        tokens = tokens[None] if tokens.ndim == 2 else tokens
        if tokens.ndim != 3 or len(tokens) != 1 or tokens.shape[1] > length or tokens.shape[2] != width:
            raise ValueError(f"`tokens` of shape {tuple(tokens.shape)} must be (1, T, {width}), T up to {length}.")
        padded = nn.functional.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
        self.negative_context = padded.to(self.query_transformer.queries)
        self.register_to_config(learned_negative=True)

"""The world's "text encoder": attribute names and the layout of a scene become cross-attention tokens.

It is what a prompt is to Stable Diffusion. Every token can be dropped (set to zero), so the UNet also learns partial
conditions and, with all five dropped, the zero context that classifier-free guidance uses with image contexts as well.
"""

import math
from collections.abc import Collection
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from data.world.scenes import ATTRIBUTES, Scenes
from seecoder.base_model.loading import load_model

TOKENS = (*ATTRIBUTES, "layout")
BASE = Path(__file__).resolve().parent / "base"
BASE_XL = BASE.with_name("base_xl")  # of SDXL's family: it reads a pooled vector and sizes as well
ENCODERS = Path(__file__).resolve().parent / "encoders"


class WorldConditioner(ModelMixin, ConfigMixin):
    """Scenes to context tokens.

    Args:
        context_dim: Width of a token; the UNet's `cross_attention_dim`.
        layout_frequencies: How many octaves encode each of centre height, centre width and radius.
        lowest_octave: The first of them; 0 has a period of two frames, -2 one of eight, which tells apart the places
            outside the frame that a crop's object can have.
        pooled_dim: Width of the pooled vector that a base like SDXL reads beside the tokens; None for none.
    """

    @register_to_config
    def __init__(
        self,
        context_dim: int = 128,
        layout_frequencies: int = 4,
        lowest_octave: int = 0,
        pooled_dim: int | None = None,
    ) -> None:
        super().__init__()
        embeddings = {name: nn.Embedding(len(names), context_dim) for name, names in ATTRIBUTES.items()}
        self.attributes = nn.ModuleDict(embeddings)
        self.layout = nn.Sequential(
            nn.Linear(3 * 2 * layout_frequencies, context_dim), nn.SiLU(), nn.Linear(context_dim, context_dim)
        )
        self.norm = nn.LayerNorm(context_dim)
        # Without a bias: the vector of the zero context is zero, as that of SDXL's empty prompt.
        self.pooled_projection = nn.Linear(context_dim, pooled_dim, bias=False) if pooled_dim else None
        octaves = math.pi * 2.0 ** torch.arange(lowest_octave, lowest_octave + layout_frequencies)
        self.register_buffer("octaves", octaves, persistent=False)

    def forward(self, scenes: Scenes, keep: Tensor | None = None) -> Tensor:
        """Encode scenes.

        Args:
            scenes: N scenes.
            keep: (N, 5) bool in the order of `TOKENS`; False drops a token. All are kept when not given.

        Returns:
            (N, 5, context_dim), dropped tokens are zero.
        """
        device = self.norm.weight.device
        tokens = [self.attributes[name](getattr(scenes, name).to(device)) for name in TOKENS[:-1]]
        place = torch.stack([scenes.center_y, scenes.center_x, scenes.radius], dim=1).to(device)
        phases = (place.unsqueeze(-1) * torch.as_tensor(self.octaves)).flatten(1)  # (N, 3 * frequencies)
        waves = torch.cat([phases.sin(), phases.cos()], dim=1).to(self.norm.weight.dtype)
        context = self.norm(torch.stack([*tokens, self.layout(waves)], dim=1))
        return context if keep is None else context * keep.to(device).unsqueeze(-1)

    def pool(self, context: Tensor) -> Tensor | None:
        """Give the pooled vector of a context: (N, tokens, context_dim) -> (N, pooled_dim), or None for none."""
        return None if self.pooled_projection is None else self.pooled_projection(context.mean(1))


def without(names: Collection[str], count: int) -> Tensor:
    """The `keep` of a conditioner that drops the named tokens, (count, 5) bool."""
    return torch.tensor([name not in names for name in TOKENS]).expand(count, -1)


def load_conditioner(base: str | Path = BASE) -> WorldConditioner:
    """Load the conditioner of a base in float32, in evaluation mode."""
    folder = Path(base) / "conditioner"
    if not folder.is_dir():
        raise FileNotFoundError(f"`base`={base} has no folder conditioner/: it is not a base of the world.")
    return load_model(WorldConditioner, base, "conditioner")

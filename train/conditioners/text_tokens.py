"""Words as tokens, by any text encoder of transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer

from train.conditioners.channels import ConditionPart


class TextTokens(ConditionPart):
    """The last hidden states of a text encoder; no condition is the empty text, as for Stable Diffusion.

    The exported base is whole: `StableDiffusionPipeline` takes prompts for it.

    Args:
        context_dim: Width of a token, and of the encoder's hidden states.
        encoder: Folder of the encoder and its tokenizer, or of a base with `text_encoder/` and `tokenizer/`.
        from_scratch: Only its configuration is read, and it is trained with the UNet, as LDM's; otherwise it is frozen,
            as Stable Diffusion's.
    """

    def __init__(self, context_dim: int, encoder: str, from_scratch: bool = False) -> None:
        super().__init__()
        named = [Path(encoder) / name for name in ("tokenizer", "text_encoder")]
        words, model = (str(folder) if folder.is_dir() else encoder for folder in named)
        config, make = AutoConfig.from_pretrained(model), AutoModelForTextEncoding
        if (width := config.hidden_size) != context_dim:
            raise ValueError(f"`context_dim`={context_dim} must be {width}, as wide as {encoder}. Change one of them.")
        self.frozen_names = () if from_scratch else ("text_encoder",)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(words)
        made: Any = make.from_config(config) if from_scratch else make.from_pretrained(model).requires_grad_(False)
        self.text_encoder = made.float()

    def forward(self, batch: dict[str, Any], keep: Tensor) -> Tensor:
        """Encode `caption`, N texts: (N, T, context_dim), T as many as the tokenizer's longest text has."""
        texts = [text if is_told else "" for text, is_told in zip(batch["caption"], keep.tolist(), strict=True)]
        found = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(found.input_ids.to(self.text_encoder.device))[0]

    def export(self, base: Path) -> dict[str, Any]:
        """Write `text_encoder/` and `tokenizer/`."""
        parts = {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}
        for name, part in parts.items():
            part.save_pretrained(base / name)
        return {name: ["transformers", type(part).__name__] for name, part in parts.items()}

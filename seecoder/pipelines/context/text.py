"""Text beside the picture: the base's own text encoders, loaded where they are asked for, and what they make of it.

Stable Diffusion 1.x and 2.x read the last layer of one CLIP, SDXL the last but one of two, with the pooled vector of
the second (Podell et al. 2023, Sec. 2.1).
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.peft_utils import scale_lora_layers

from seecoder.base_model.facts import context_width, is_sdxl
from seecoder.base_model.loading import load_config, load_model
from seecoder.pipelines.adapters.lora import kept_lora_weights
from seecoder.pipelines.context.contexts import Contexts

# A text (or one a context), or what somebody made of it: tokens (1 or N, T, D), for SDXL with pooled vectors (1 or N,
# P).
Text = str | list[str] | torch.Tensor | tuple[torch.Tensor, torch.Tensor]

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")  # only these are ever built from a name in a file


def load_text_parts(
    base: str | os.PathLike[str], names: Sequence[str], dtype: torch.dtype | None = None, **hub: Any
) -> dict[str, Any]:
    """Load the text encoders of a base and their tokenizers, the weights strictly.

    Args:
        base: A diffusers folder, or a repository on the Hub.
        names: Of `TEXT_PARTS`, those to load.
        dtype: What to load weights as; None for float32.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: A part is not there.
        ValueError: A configuration names another class than CLIP's.
        WeightsError: Weights are missing, left over or of another shape.
    """
    import transformers

    if os.path.isfile(base):
        raise ValueError(
            f"`base`={base} is one file, of which no text encoder is read. Give a folder, or tokens as `text`."
        )
    variant = hub.pop("variant", None)
    parts: dict[str, Any] = {}
    for name in names:
        if name.startswith("tokenizer"):
            try:
                parts[name] = transformers.CLIPTokenizer.from_pretrained(os.fspath(base), subfolder=name, **hub)
            except (OSError, TypeError, ValueError) as error:
                raise FileNotFoundError(f"`base`={base} has no readable {name}/; give a base with its own.") from error
            if len(parts[name]) <= len(parts[name].all_special_tokens):  # what transformers makes of an absent folder
                raise FileNotFoundError(f"`base`={base} has no words in {name}/; give a base with its own.")
            continue
        kind = next(iter(load_config(base, name, **hub).get("architectures") or ()), None)
        if kind not in _CLASSES:
            raise ValueError(f"`{base}/{name}` holds a {kind}; expected {' or '.join(_CLASSES)}.")
        parts[name] = load_model(getattr(transformers, kind), base, name, dtype, variant=variant, **hub)
    return parts


def encode_text(
    pipe: Any, text: Text, notes: list[str], lora_scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Make tokens of a text, or take those that were made of it elsewhere.

    Args:
        pipe: A pipeline with text encoders, or one without if the text comes as tokens.
        text: A text, one for each context, or ready tokens.
        notes: What was left out is said here.
        lora_scale: Factor on the LoRAs in the text encoders.

    Returns:
        (1 or N, T, D) tokens, and for SDXL (1 or N, P) pooled vectors.

    Raises:
        ValueError: There are no text encoders, or tokens that do not fit the base.
    """
    if isinstance(text, torch.Tensor | tuple):
        tokens, pooled = text if isinstance(text, tuple) else (text, None)
        width = context_width(pipe.unet)
        if tokens.ndim != 3 or tokens.shape[-1] != width or (pooled is None) == is_sdxl(pipe.unet):
            wanted = f"(N, T, {width}){' and pooled vectors' if is_sdxl(pipe.unet) else ''}"
            raise ValueError(f"`text` has tokens of shape {tuple(tokens.shape)}; this base reads {wanted}.")
        return tokens, pooled
    pairs = [(getattr(pipe, f"tokenizer{end}"), getattr(pipe, f"text_encoder{end}")) for end in ("", "_2")]
    pairs = pairs if is_sdxl(pipe.unet) else pairs[:1]
    if any(None in pair for pair in pairs):
        raise ValueError(
            "`text` needs the base's text encoder; load it by `from_base(..., text=True)`, or give tokens."
        )
    prompts = [text] if isinstance(text, str) else text
    outputs = []
    for tokenizer, encoder in pairs:
        with kept_lora_weights(encoder):
            scale_lora_layers(encoder, lora_scale)
            outputs.append(_run(tokenizer, encoder, prompts, pipe._execution_device, notes))
    if len(outputs) == 1:
        return outputs[0][0], None
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1][0]


def _run(tokenizer: Any, encoder: Any, prompts: list[str], device: torch.device | str, notes: list[str]) -> Any:
    length = tokenizer.model_max_length
    if any(len(ids) > length for ids in tokenizer(prompts).input_ids):
        notes.append(f"the text has more than {length} tokens; what comes after them was left out.")
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    masked = getattr(encoder.config, "use_attention_mask", False)  # as the stock pipelines do it
    mask = ids.attention_mask.to(device) if masked else None
    return encoder(ids.input_ids.to(device), attention_mask=mask, output_hidden_states=True)


def text_contexts(pipe: Any, text: Text, negative: Text | None, notes: list[str], lora_scale: float = 1.0) -> Contexts:
    """Make the contexts of a text and of the text against it.

    Args:
        pipe: A pipeline, as for `encode_text`.
        text: What the results should follow.
        negative: What they should not; None is the base's own habit: the empty text for SD 1.x and 2.x where there is a
            text encoder, else zeros.
        notes: What was left out is said here.
        lora_scale: Factor on the LoRAs in the text encoders.

    Raises:
        ValueError: No text encoder, or tokens that do not fit.
    """
    tokens, pooled = encode_text(pipe, text, notes, lora_scale)
    if negative is None and pipe.text_encoder is not None and pooled is None:
        negative = ""
    if negative is None:
        return Contexts(tokens, torch.zeros_like(tokens), pooled, None if pooled is None else torch.zeros_like(pooled))
    negative_tokens, negative_pooled = encode_text(pipe, negative, notes, lora_scale)
    if negative_tokens.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"`negative_text` has {negative_tokens.shape[1]} tokens; it must have {tokens.shape[1]}, as `text` has."
        )
    return Contexts(tokens, negative_tokens, pooled, negative_pooled)

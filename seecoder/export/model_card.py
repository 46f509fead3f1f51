"""The README of an exported encoder, with the header that the Hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class CardFacts:
    """What cannot be read off the weights.

    Attributes:
        license: An identifier that the Hub knows; "other" if nothing else was said.
        base_model: The Hub name of the base that the encoder was trained with, or "".
        name: The title.
        notes: Further facts, such as which weights were taken, shown as a table.
    """

    license: str = "other"
    base_model: str = ""
    name: str = "SeeCoder"
    notes: Mapping[str, str] = field(default_factory=dict)


def model_card(encoder: Any, format: str, facts: CardFacts, size: tuple[int, int]) -> str:
    """Write the card.

    Args:
        encoder: A `SeeCoder`.
        format: "hub" or "onnx".
        facts: What is known besides.
        size: (height, width) of the pictures of an ONNX graph.

    Returns:
        Markdown with a YAML header.
    """
    config = encoder.config
    width = config["context_dim"]
    tokens = config["num_global_queries"] + config["num_local_queries"]
    family = _FAMILIES.get(width, f"bases with a cross-attention width of {width}")
    usage = _onnx_usage(size) if format == "onnx" else _hub_usage(config["pooled_dim"] is not None)
    rows = {
        "backbone": f"`{config['backbone']}`",
        "context": f"{tokens} tokens of width {width}, for {family}",
        "position-aware": "yes" if config["position_aware"] else "no",
        "decoder attention": config["decoder_attention"],
        "trained at": f"{config['image_size']} pixels; guidance {config['guidance_scale']:g} suits it",
        "parameters": f"{sum(parameter.numel() for parameter in encoder.parameters()):,}",
        **facts.notes,
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return (
        f"{_header(facts)}\n# {_line(facts.name)}\n\n"
        "An image-context encoder (SeeCoder, [Prompt-Free Diffusion](https://arxiv.org/abs/2305.16223)): it turns a "
        "picture into the\n"
        f"tokens that take the place of a prompt's embedding.\n\n| | |\n|---|---|\n{table}\n\n{usage}"
    )


def _header(facts: CardFacts) -> str:
    data = ModelCardData(
        license=_line(facts.license),
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=facts.base_model.rpartition("@")[2].partition("?")[0] or None,  # never with a login or a token
        tags=["seecoder", "image-variation", "prompt-free-diffusion", "stable-diffusion"],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _hub_usage(is_xl: bool) -> str:
    pipeline = "SeeCoderXLPipeline" if is_xl else "SeeCoderPipeline"
    return (
        f"```python\nfrom seecoder import SeeCoder, {pipeline}\n\n"
        'encoder = SeeCoder.from_pretrained("this folder or repository")\n'
        f'pipe = {pipeline}.from_base("any base of that family", encoder=encoder)\n'
        'image = pipe("picture.jpg").images[0]\n```\n\n'
        "Or as `prompt_embeds` of any diffusers pipeline of that family, with zeros of the same shape as "
        "`negative_prompt_embeds`.\n"
    )


def _onnx_usage(size: tuple[int, int]) -> str:
    return (
        f"`encoder.onnx` takes `pixels`, (1, 3, {size[0]}, {size[1]}) float32 in [0, 1], and gives `context`. The "
        "context goes to the UNet as\n"
        "`encoder_hidden_states`; unconditional is the zero context.\n"
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(str(text)).replace("|", "\\|")

"""Fields of the page for what ControlNets, T2I-Adapters and IP-Adapters see, where the pipeline has any."""

from collections.abc import Callable, Mapping
from typing import Any

from seecoder.call_rules import one_or_all

# By the arguments of a call that they give: the picture of each kind of network, and the numbers that go with it.
_CONTROLNET = {
    "controlnet_conditioning_scale": "Strength (empty: 1)",
    "control_guidance_start": "Part of the steps after which it sets in, 0 to 1 (empty: at once)",
    "control_guidance_end": "Part of the steps after which it stops, 0 to 1 (empty: never)",
}
_ADAPTER = {"adapter_conditioning_scale": "Strength (empty: 1)"}


def guiding_fields(gradio: Any, pipe: Any, upload: Callable[..., Any]) -> dict[str, Any]:
    """Make the fields, by the arguments of a call that they give; none for networks that are not there.

    Args:
        gradio: The module.
        pipe: The pipeline.
        upload: Makes a field for pictures, of a label and options.
    """
    fields: dict[str, Any] = {}
    for kind, network, argument, numbers in (
        ("ControlNet", pipe.controlnet, "control_image", _CONTROLNET),
        ("T2I-Adapter", pipe.adapter, "adapter_image", _ADAPTER),
    ):
        if network is not None:
            fields[argument] = upload(f"What the {kind} sees (of several: in their order)", file_count="multiple")
            fields |= {name: gradio.Textbox(label=f"{kind}: {label}") for name, label in numbers.items()}
    if pipe.unet.config.encoder_hid_dim_type == "ip_image_proj":
        fields["ip_adapter_image"] = upload("What the IP-Adapter sees")
    return fields


def guiding_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read numbers and files as the command line does: one value, or for several networks a list.

    Args:
        given: What the page holds by argument; what is not about these networks is given back as it is.

    Raises:
        ValueError: A text that does not hold numbers.
    """
    values = {name: as_numbers(name, given[name]) for name in (*_CONTROLNET, *_ADAPTER) if name in given}
    values |= {name: given[name] for name in ("control_image", "adapter_image") if name in given}
    return {**given, **{name: one_or_all(value) for name, value in values.items()}}


def as_numbers(name: str, text: str) -> list[float]:
    """Read numbers with spaces between.

    Args:
        name: What to call the text in an error.
        text: Such as "0.5 1".

    Raises:
        ValueError: A word that is no number.
    """
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"`{name}`={text!r} must be numbers with spaces between, such as 0.5 1.") from None

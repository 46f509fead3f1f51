"""Folders that diffusers writes and reads, without what it does silently: half-fitting weights, and pickles."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from seecoder.lookup import check_source
from seecoder.weights.safetensors_files import WeightsError
from seecoder.weights.strict_loading import refuse_differences, refuse_report


def load_folder(load: Callable[..., Any], source: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model by diffusers' own `from_pretrained`, strictly and from safetensors alone.

    Args:
        load: `ModelMixin.from_pretrained`, bound to a class.
        source: Folder, or name of a repository on the Hub.
        **kwargs: Those of `from_pretrained`; `dtype` is understood by every version of diffusers.

    Returns:
        The model, and diffusers' report.
    """
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("`use_safetensors`=False would load a pickle, which can run code; only safetensors are read.")
    if "dtype" in kwargs:
        kwargs["torch_dtype"] = kwargs.pop("dtype")  # the name that older diffusers know, and newer ones still do
    if kwargs.get("device_map") is None and kwargs.get("quantization_config") is None:
        # The other way of loading would cast the positional encoding, which is kept in float32.
        kwargs["low_cpu_mem_usage"] = False
    check_source("encoder", source, **kwargs)
    try:
        model, report = load(source, use_safetensors=True, output_loading_info=True, **kwargs)
    except RuntimeError as error:
        mismatched = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        refuse_differences(mismatched=mismatched, source=source, target="its configuration")
        raise
    variant = "position-aware" if model.config["position_aware"] else "plain"
    refuse_report(
        report,
        source=source,
        target=f"its configuration, which is a {variant} encoder's",
        hint="The folder is damaged or mixed from two; export it again.",
    )
    return model, report


def check_savable(model: nn.Module, folder: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
    """Refuse what diffusers' `save_pretrained` would do wrong: pickles, files as folders, weights without values."""
    if options.get("safe_serialization", True) is False:
        raise ValueError("`safe_serialization`=False would write a pickle, which no reader here accepts.")
    if Path(folder).is_file():
        raise NotADirectoryError(f"`save_directory`={str(folder)!r} is a file; give a folder.")
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise WeightsError(f"{len(empty)} weights have no values yet (first: {', '.join(empty[:3])}); load them first.")

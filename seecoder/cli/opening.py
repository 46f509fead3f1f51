"""Open what the command line names: encoders in any form, bases, devices."""

import argparse
from pathlib import Path
from typing import Any

from seecoder.cli.console import say

__all__ = ["load_encoder_or_context", "load_pipeline", "pick_device", "pick_dtype"]


def pick_device(name: str) -> Any:
    """Choose the device.

    Args:
        name: a torch device, or "auto" for an accelerator if there is one.

    Raises:
        ValueError: not a device, or one that is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`--device` {name!r} is not a device; use cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`--device` {name}: torch sees no CUDA device here; use --device cpu.")
    return device


def pick_dtype(name: str, device: Any) -> Any:
    """Choose the dtype of the networks.

    Args:
        name: "float32", "bfloat16", "float16", or "auto".
        device: where they will run.
    """
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, name)


def load_encoder_or_context(source: str, dtype: Any = None) -> tuple[Any, Any]:
    """Open `--encoder`.

    Args:
        source: a folder or Hub repository in our format, a released `.safetensors` file, or a file of cached contexts.
        dtype: what to hold an encoder in; None for how it was saved.

    Returns:
        (encoder, None), or (None, contexts) as `seecoder.encoder.context.load_context` gives them.

    Raises:
        FileNotFoundError: nothing is there.
        WeightsError: what is there does not fit, or is a pickle.
    """
    from seecoder.encoder.context import is_context_file, load_context
    from seecoder.encoder.model import SeeCoder

    path = Path(source)
    if is_context_file(path):
        return None, load_context(path)
    if path.is_file():
        encoder = SeeCoder.from_official(path)
        return encoder if dtype is None else encoder.to(dtype), None
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise FileNotFoundError(f"`--encoder` {source}: no such file or folder.")
    return SeeCoder.from_pretrained(source, **({} if dtype is None else {"dtype": dtype})), None


def load_pipeline(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Build the pipeline that the options of `add_base_options` describe.

    Args:
        arguments: the parsed options.

    Returns:
        The pipeline on its device, and the cached contexts if `--encoder` named such a file.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: parts that do not fit each other.
        WeightsError: weights that do not fit.
    """
    from seecoder.base_model.facts import is_sdxl
    from seecoder.base_model.loading import load_config, scheduler_class
    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline

    device = pick_device(arguments.device)
    dtype = pick_dtype(arguments.dtype, device)
    if (arguments.controlnet is None) != (arguments.control_image is None):
        raise ValueError("`--controlnet` and `--control-image` work only together.")
    encoder, contexts = load_encoder_or_context(arguments.encoder, dtype)
    cls = SeeCoderXLPipeline if is_sdxl(load_config(arguments.base, "unet")) else SeeCoderPipeline
    say(f"base {arguments.base}, encoder {arguments.encoder}, {str(dtype).removeprefix('torch.')} on {device}")
    pipe = cls.from_base(
        arguments.base,
        encoder=encoder,
        vae=_load_model(arguments.vae, "vae", dtype),
        controlnet=_load_model(arguments.controlnet, "controlnet", dtype),
        dtype=dtype,
        variant=arguments.variant,
    )
    scheduler = getattr(arguments, "scheduler", None)
    if scheduler:
        name = scheduler if scheduler.endswith("Scheduler") else f"{scheduler}Scheduler"
        pipe.scheduler = scheduler_class(name).from_config(pipe.scheduler.config)
    return pipe.to(device), contexts


def _load_model(folder: str | None, part: str, dtype: Any) -> Any:
    """Load a model that is the folder itself, or a sub-folder of a pipeline's folder."""
    from seecoder.base_model.loading import load_part

    if folder is None:
        return None
    return load_part(folder, part, dtype, at_top=not (Path(folder) / part).is_dir())

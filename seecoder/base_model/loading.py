"""Read the parts of a base strictly: safetensors only, and every weight has to be there and to fit.

A base is a diffusers folder, a repository on the Hub, or a checkpoint in one file. diffusers itself goes on when
weights are missing (they stay uninitialised), and falls back to pickles when there is no safetensors file; neither
happens here.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin

from seecoder.base_model.schedulers import scheduler_from_config
from seecoder.base_model.single_file import FILE_PARTS, SingleFile, say_once
from seecoder.lookup import check_source, is_local
from seecoder.weights.safetensors_files import PICKLE_SUFFIXES, WeightsError, read_header
from seecoder.weights.strict_loading import refuse_report

Model = TypeVar("Model", bound=ModelMixin)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Only these classes are ever built from a name in a file.
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "controlnet": ("ControlNetModel",),
    "adapter": ("T2IAdapter",),
    "vae": ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel"),
}
_CONFIG_NAMES = {"pipeline": "model_index.json", "scheduler": "scheduler_config.json"}
_FILE_OPTIONS = ("prediction_type", "sdxl")  # what a file does not say of itself
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")


def load_config(base: str | os.PathLike, part: str, *, at_top: bool = False, **hub: Any) -> dict[str, Any]:
    """Read the configuration of one part of a diffusers folder or repository, or tell it of a checkpoint in one file.

    Args:
        base: A folder, a file, or a repository on the Hub.
        part: `unet`, `vae`, `scheduler`, `controlnet`, `adapter`, or `pipeline` for the index.
        at_top: The part is `base` itself, not a sub-folder of it; the index always is.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`; `prediction_type`, what the base says of
            itself, corrected; `sdxl`, whether a VAE in a file is SDXL's.

    Returns:
        The configuration as a dictionary; its class is under `_class_name`.

    Raises:
        FileNotFoundError: There is no such folder, repository or part.
    """
    check_source("base", base, **hub)
    options = {key: hub.pop(key) for key in _FILE_OPTIONS if key in hub}
    if Path(base).is_file():
        if part == "pipeline":
            return {"_class_name": "checkpoint in one file"}
        if part not in FILE_PARTS:
            raise ValueError(f"`{part}`={base} must be a folder or a repository; no {part} is read of one file.")
        return SingleFile.open(base).config(part, **options)
    name = _CONFIG_NAMES.get(part, "config.json")
    folder = None if at_top or part == "pipeline" else part
    if Path(base).is_dir() and not (Path(base) / (folder or "")).is_dir():
        # An archive often holds a folder of its own; in the Hub's cache the files lie below snapshots/.
        inner = [path.parent for way in ("*", "snapshots/*") for path in Path(base).glob(f"{way}/model_index.json")]
        needed = "unet/, vae/ and scheduler/" if part in ("unet", "vae", "scheduler") else f"{folder}/"
        which = f"give {inner[0]}" if inner else f"give a diffusers folder with {needed}"
        raise FileNotFoundError(f"`base`={base} has no `{folder}/`; {which}.")
    reader: Any = type("_Reader", (ConfigMixin,), {"config_name": name})
    try:
        config = dict(reader.load_config(os.fspath(base), subfolder=folder, **hub))
    except (OSError, ValueError, TypeError) as error:
        where = f"{folder}/{name}" if folder else name
        owner, why = part if at_top else "base", _first_line(error)
        if at_top and Path(base).is_dir() and not Path(base, where).is_file():
            why = f"give the folder of a {part}, or one that holds {part}/."
        raise FileNotFoundError(f"`{owner}`={base} has no readable {where}; {why}") from error
    predicted = options.get("prediction_type")
    return config if predicted is None or part != "scheduler" else {**config, "prediction_type": predicted}


def load_model(
    cls: type[Model], base: str | os.PathLike, part: str | None, dtype: torch.dtype | None = None, **hub: Any
) -> Model:
    """Load a model, or say exactly what is wrong with its weights.

    Args:
        cls: The class, one of diffusers' or made like these.
        base: A folder, or a repository on the Hub.
        part: The sub-folder, or None for `base` itself.
        dtype: What to load the weights as; None for float32.
        hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no configuration, or no safetensors file.
        WeightsError: Weights are missing, left over, mis-shaped, or the file is damaged.
    """
    hub["variant"] = check_weights(base, part, hub.get("variant"))
    source = f"{base}/{part}" if part else os.fspath(base)
    try:
        loaded: Any = cls.from_pretrained(
            os.fspath(base),
            subfolder=part,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **hub,
        )
        model, report = loaded
    except OSError as error:
        raise FileNotFoundError(
            f"`{source}`: {_first_line(error)} Only safetensors files are read; if they are of a variant, name it "
            "(`variant`, such as fp16)."
        ) from error
    except ImportError as error:  # of a package that reads quantised weights
        raise ImportError(f"`{source}` needs a package that is not installed: {_first_line(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"`{source}` does not fit {cls.__name__}: {_first_line(error)}") from error
    refuse_report(report, source=source, target=cls.__name__)
    return model.eval()


def check_weights(base: str | os.PathLike, part: str | None, variant: str | None = None) -> str | None:
    """Refuse a folder whose weights are pickles or not whole; only headers are read, so that a plan can ask.

    Args:
        base: A folder; of a repository nothing is known before it is read.
        part: The sub-folder, or None for `base` itself.
        variant: As for `existing_variant`.

    Returns:
        The variant that will be read.

    Raises:
        FileNotFoundError: There are pickles and no safetensors file, or some of several files are missing.
        WeightsError: A file was not fetched to its end.
    """
    folder = Path(base) / (part or "")
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"`{folder}` has no safetensors file, and {pickles[0]} is a pickle. Only safetensors files are read; save "
            "the weights as such with diffusers."
        )
    if not is_local(base):
        return variant
    variant = existing_variant(folder, variant)
    for path in folder.glob("*.safetensors"):
        match = _WEIGHTS.fullmatch(path.name)
        if match and (match[1] or match[2]) == variant:
            read_header(path)  # of a damaged file diffusers only says that it fails
    for index in folder.glob("*.safetensors.index*.json"):
        named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if 0 < len(missing) < len(named):
            raise FileNotFoundError(
                f"`{folder}` lacks {missing[0]}, one of {len(named)} files that {index.name} names. Get it again."
            )
    return variant


def existing_variant(folder: Path, wanted: str | None) -> str | None:
    """Choose among the variants whose weights lie in a folder; what was not asked for is said, once.

    Args:
        folder: Of one part.
        wanted: Such as "fp16"; None for the weights without a variant.

    Returns:
        The variant that is wanted; or the weights without a variant; or the only variant that there is.

    Raises:
        FileNotFoundError: There are several variants, and neither the wanted one nor weights without.
    """
    matches = [_WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))]
    found = {match[1] or match[2] for match in matches if match}
    if not found or wanted in found:
        return wanted
    if None not in found and len(found) > 1:
        raise FileNotFoundError(
            f"`variant`={wanted} has no weights in {folder}; there are {', '.join(sorted(filter(None, found)))}."
        )
    chosen = None if None in found else found.pop()
    say_once(f"{folder.parent}: weights of `variant`={chosen} are read; there are none of `variant`={wanted}.")
    return chosen


def load_part(
    base: str | os.PathLike, part: str, dtype: torch.dtype | None = None, *, at_top: bool = False, **hub: Any
) -> Any:
    """Load `unet`, `vae`, `scheduler` or `controlnet` of a folder, each strictly, by the class its configuration names.

    Args:
        base: A folder, a file, or a repository on the Hub.
        part: The name of the sub-folder.
        dtype: What to load weights as; None for float32.
        at_top: The part is `base` itself, not a sub-folder of it.
        hub: `variant`, and what `load_config` takes.

    Raises:
        FileNotFoundError: The part, or its weights, are not there.
        ValueError: The configuration names a class that does not belong there.
        WeightsError: The weights do not fit.
    """
    variant, options = hub.pop("variant", None), {key: hub.pop(key) for key in _FILE_OPTIONS if key in hub}
    config = load_config(base, part, at_top=at_top, **hub, **options)
    name = str(config.get("_class_name"))
    if part == "scheduler":
        return scheduler_from_config(config)
    if Path(base).is_file():
        return SingleFile.open(base).load(part, dtype, variant=variant, **options)
    accepted = CLASSES[part.partition("_")[0]]  # `controlnet_1` is the second of several
    if name not in accepted:
        raise ValueError(f"`{base if at_top else f'{base}/{part}'}` holds a {name}; expected {' or '.join(accepted)}.")
    return load_model(getattr(diffusers, name), base, None if at_top else part, dtype, variant=variant, **hub)


def load_beside(source: str | os.PathLike, part: str, dtype: torch.dtype | None, *, sdxl: bool) -> Any:
    """Load a VAE, a ControlNet or a T2I-Adapter that does not come with the base.

    Args:
        source: The part's own folder, repository or file, or the folder or file of a base that has it.
        part: `vae`, `controlnet` or `adapter`.
        dtype: What to load weights as; None for float32.
        sdxl: Whether the base is SDXL's, which a VAE in a file does not say of itself.

    Raises:
        FileNotFoundError: Nothing is there.
        WeightsError: The weights do not fit.
    """
    check_source(part, source)
    return load_part(source, part, dtype, at_top=not (Path(source) / part).is_dir(), sdxl=sdxl)


def load_frozen(base: str | os.PathLike, part: str, dtype: str, *, at_top: bool = False, **hub: Any) -> Any:
    """Load a part that training needs and never changes, in the memory layout in which convolutions are fastest.

    Args:
        base: A folder, or a repository on the Hub.
        part: `unet` or `vae`.
        dtype: A key of `DTYPES`.
        at_top: The part is `base` itself, not a sub-folder of it.
        hub: `variant`, and what `load_config` takes.

    Returns:
        The network, which asks for no gradients; on the CPU.

    Raises:
        FileNotFoundError: The part, or its weights, are not there.
        ValueError: The configuration names another class, or an autoencoder that nothing here trains on.
        WeightsError: The weights do not fit.
    """
    network = load_part(base, part, DTYPES[dtype], at_top=at_top, **hub)
    if part == "vae" and not isinstance(network, (diffusers.AutoencoderKL, diffusers.VQModel)):
        kind = type(network).__name__
        raise ValueError(f"`{base}/{part}` holds a {kind}; training needs an AutoencoderKL or a VQModel.")
    frozen: Any = network.requires_grad_(False)
    return frozen.to(memory_format=torch.channels_last)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]

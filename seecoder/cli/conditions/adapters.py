"""What people put beside the base: ControlNets, T2I-Adapters, LoRAs, an IP-Adapter; and where all networks are held."""

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seecoder.call_rules import one_or_all
from seecoder.checks import number, require
from seecoder.lookup import saved_together

if TYPE_CHECKING:
    import torch

    from seecoder.pipelines import SeeCoderPipeline, SeeCoderXLPipeline

# Arguments of a pipeline's call, and the options that give them; an option that can be repeated gives a list.
ADAPTER_OPTIONS = {
    "controlnet_conditioning_scale": "control_scale",
    "control_guidance_start": "control_start",
    "control_guidance_end": "control_end",
    "control_image": "control_image",
    "adapter_conditioning_scale": "adapter_scale",
    "adapter_image": "adapter_image",
    "ip_adapter_image": "ip_adapter_image",
}
_TOGETHER = (("controlnet", "control_image"), ("adapter", "adapter_image"), ("ip_adapter", "ip_adapter_image"))
_NUMBERS = {"controlnet": ("control_scale", "control_start", "control_end"), "adapter": ("adapter_scale",)}
Pictures = Mapping[str, Any]  # decoded, by their paths
_OFFLOADING = ("model", "sequential", "group")


def file_and_weight(text: str) -> tuple[str, float]:
    """Read `FILE` or `FILE=WEIGHT`."""
    name, equals, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("beside the base")

    def repeated(flag: str, metavar: str, text: str, kind: Any = str) -> None:
        group.add_argument(flag, action="append", default=[], type=kind, metavar=metavar, help=text)

    repeated("--lora", "FILE[=WEIGHT]", "a LoRA in kohya's or diffusers' names; may be repeated", file_and_weight)
    repeated("--controlnet", "FOLDER_OR_FILE", "a ControlNet; needs --control-image; both may be repeated")
    repeated("--control-image", "PICTURE", "what the ControlNet sees")
    repeated("--control-scale", "NUMBER", "factor on the ControlNet's residuals: one for all, or one each", float)
    repeated("--control-start", "FRACTION", "where on the trajectory control sets in (0: at once)", float)
    repeated("--control-end", "FRACTION", "where on the trajectory control stops (1: never)", float)
    repeated("--adapter", "FOLDER", "a T2I-Adapter; needs --adapter-image; both may be repeated")
    repeated("--adapter-image", "PICTURE", "what the T2I-Adapter sees")
    repeated("--adapter-scale", "NUMBER", "factor on the T2I-Adapter's features: one for all, or one each", float)
    group.add_argument(
        "--ip-adapter",
        type=file_and_weight,
        metavar="FILE[=SCALE]",
        help="an IP-Adapter beside the context, with its image_encoder/ in the same folder; needs --ip-adapter-image",
    )
    group.add_argument("--ip-adapter-image", metavar="PICTURE", help="what the IP-Adapter sees")
    group.add_argument(
        "--offload",
        choices=_OFFLOADING,
        help="hold on the accelerator only the network that works (model), or its layers (group, sequential: slow)",
    )


def check_guides(arguments: argparse.Namespace) -> None:
    """Refuse networks without their pictures, and numbers without their network.

    Raises:
        ValueError: A network without a picture or the other way round, or numbers for other networks than there are.
    """
    for network, options in _NUMBERS.items():
        if len(given := getattr(arguments, network)) == 1:
            setattr(arguments, network, saved_together(given[0]))
        count = len(getattr(arguments, network))
        for option in options:
            if len(getattr(arguments, option)) not in {0, min(count, 1), count}:
                raise ValueError(
                    f"`--{option.replace('_', '-')}`={getattr(arguments, option)} must be one number for all {count} "
                    f"of `--{network}`, or one each; leave it out if there is none."
                )
    for network, picture in _TOGETHER:
        networks, pictures = getattr(arguments, network), getattr(arguments, picture)
        counts = [len(given) if isinstance(given, list) else given is not None for given in (networks, pictures)]
        if counts[0] != counts[1]:
            flags = f"`--{network.replace('_', '-')}` and `--{picture.replace('_', '-')}`"
            raise ValueError(
                f"{flags} work only together, as many of one as of the other; {counts} with all saved together."
            )


def check_adapters(arguments: argparse.Namespace) -> None:
    """Refuse files that are not there, and weights that are no numbers.

    Raises:
        ImportError: The package peft is not installed.
        FileNotFoundError: An IP-Adapter, or its image encoder, is missing.
        ValueError: A weight is not finite.
    """
    for source, weight in filter(None, [*arguments.lora, arguments.ip_adapter]):
        require(f"{source}=WEIGHT", weight, number())
    if arguments.lora and importlib.util.find_spec("peft") is None:
        raise ImportError("`--lora` needs peft. Install the extra: pip install 'seecoder[lora]'.")
    if arguments.ip_adapter is not None:
        path = Path(arguments.ip_adapter[0])
        if not path.is_file() or not (path.parent / "image_encoder").is_dir():
            raise FileNotFoundError(f"`--ip-adapter`={path} must be a file with a folder image_encoder/ beside it.")


def adapter_arguments(
    arguments: argparse.Namespace, controls: Pictures | None = None, whole: Pictures | None = None
) -> dict[str, Any]:
    """Translate the options into arguments of a pipeline's call; what was not given is left to its defaults.

    Args:
        arguments: The parsed options.
        controls: Decoded control pictures by their paths, which they take the place of.
        whole: Other decoded pictures by their paths.
    """
    given = {argument: getattr(arguments, option) for argument, option in ADAPTER_OPTIONS.items()}
    if controls is not None and whole is not None:
        for name in ("control_image", "adapter_image"):
            given[name] = [controls[path] for path in given[name]]
        given["ip_adapter_image"] = whole.get(given["ip_adapter_image"])
    single = {name: one_or_all(value) if isinstance(value, list) else value for name, value in given.items()}
    return {name: value for name, value in single.items() if value is not None}


def load_adapters(pipe: "SeeCoderPipeline | SeeCoderXLPipeline", arguments: argparse.Namespace) -> None:
    """Load LoRAs and an IP-Adapter into a pipeline.

    Args:
        pipe: The pipeline.
        arguments: The parsed options.

    Raises:
        WeightsError: One for another base.
    """
    names = [f"lora{place}" for place, _ in enumerate(arguments.lora, 1)]
    for name, (source, _) in zip(names, arguments.lora, strict=True):
        pipe.load_lora_weights(source, adapter_name=name)
    if names:
        pipe.set_adapters(names, [weight for _, weight in arguments.lora])
    if arguments.ip_adapter is not None:
        path, scale = Path(arguments.ip_adapter[0]), arguments.ip_adapter[1]
        pipe.load_ip_adapter(str(path.parent), weight_name=path.name)
        pipe.set_ip_adapter_scale(scale)


def place(pipe: "SeeCoderPipeline | SeeCoderXLPipeline", offload: str | None, device: "torch.device") -> None:
    """Bring a pipeline to its device, whole or only in the parts that work.

    Args:
        pipe: The pipeline.
        offload: What `--offload` gave.
        device: Where the networks work.
    """
    import torch

    if offload is None:
        pipe.to(device)
        return
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
        return
    if pipe.upcasts_vae():  # its layers are put back one by one as they were
        pipe.vae.to(torch.float32)
    if offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(device, torch.device("cpu"), "leaf_level", use_stream=device.type == "cuda")

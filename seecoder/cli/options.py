"""Options that several commands share, and how their texts become values."""

import argparse
import ast
from typing import TYPE_CHECKING, Any

from seecoder.cli.conditions.adapters import ADAPTER_OPTIONS, adapter_arguments, add_adapter_options

if TYPE_CHECKING:
    from seecoder.cli.opening import OpenedPictures

PREDICTIONS = ("epsilon", "v_prediction")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LIST = "list"  # as a method: show them
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}

# Arguments of a pipeline's call, and the options that give them.
_OPTIONS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "eta": "eta",
    "image_size": "image_size",
    "context_scale": "context_scale",
    "view_batch_size": "view_batch",
    "autoencoder_memory": "autoencoder_memory",
    "start_image": "start_image",
    "text": "text",
    "negative_text": "negative_text",
    "text_weight": "text_weight",
    "strength": "strength",
    "mask_image": "mask",
    "mask_feather": "mask_feather",
}
# What is called alike in the library and here, and may be named in an error.
_SAME = ("base", "encoder", "vae", "variant", "scheduler", "prediction_type", "controlnet", "height", "width")
_SAME += ("adapter", "method", "weights", "max_pixels", "max_side", "port")


def pipeline_arguments(arguments: argparse.Namespace, opened: "OpenedPictures | None" = None) -> dict[str, Any]:
    """Translate the options of `add_sampling_options` into arguments of a pipeline's call.

    Args:
        arguments: The parsed options.
        opened: Decoded pictures that take the place of their paths.
    """
    given = {argument: getattr(arguments, option) for argument, option in _OPTIONS.items()}
    if opened is None:
        return given | adapter_arguments(arguments)
    for name, pictures in (("start_image", opened.whole), ("mask_image", opened.masks)):
        given[name] = pictures.get(given[name])
    return given | adapter_arguments(arguments, opened.controls, opened.whole)


def with_flags(text: str) -> str:
    """Name the options in an error of the library that names arguments of a call.

    Args:
        text: Such as "`num_inference_steps`=0 must be …", which becomes "`--steps`=0 must be …".
    """
    same = {name: name for name in _SAME}
    for argument, option in {**_OPTIONS, **ADAPTER_OPTIONS, **same}.items():
        text = text.replace(f"`{argument}`", f"`--{option.replace('_', '-')}`")
    return text


def _side(text: str) -> int | str | None:
    """Read the side of a square in pixels, "trained", or "own" for None."""
    try:
        return None if text == "own" else int(text)
    except ValueError:
        return text  # a word; the rules of a call know which there are


def add_image_size(parser: argparse._ActionsContainer) -> None:
    """Add what says at which size the encoder sees pictures."""
    parser.add_argument(
        "--image-size",
        type=_side,
        default="trained",
        metavar="PIXELS",
        help="larger pictures are reduced to the area of such a square before they are encoded; trained: as the "
        "encoder records; own: never (default: %(default)s)",
    )


def add_max_pixels(parser: argparse._ActionsContainer) -> None:
    """Add what says how large a picture may be that is opened."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="COUNT",
        help="larger pictures are refused before they are decoded (default: 64 million); raise it for files you trust",
    )


def add_autoencoder_memory(parser: argparse._ActionsContainer) -> None:
    """Add what says how much memory the autoencoder may take, to a parser or a group of one."""
    parser.add_argument(
        "--autoencoder-memory",
        type=float,
        default=6.0,
        metavar="GIB",
        help="what the autoencoder may take; what takes more is decoded and encoded in tiles (inf: as a whole)",
    )


def key_value(text: str) -> tuple[str, Any]:
    """Read `key=value`; the value is a Python literal where it looks like one (8, 0.5, (4, 4)), else text.

    True, yes, false, no and none are read in any case: as text each of them would be true.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.replace(".", "").replace("-", "_").isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    key, word = key.replace("-", "_"), value.strip().lower()
    if word in _WORDS:
        return key, _WORDS[word]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class _MethodAction(argparse.Action):
    """Keeps the name; for "list", which needs nothing else, no other option is required."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)
        if values == LIST:
            for action in parser._actions:
                action.required = False


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which networks to use, and where and how to hold them."""
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--base",
        required=True,
        metavar="FOLDER_OR_FILE",
        help="diffusers folder, checkpoint in one file, or Hub repository of the base model",
    )
    group.add_argument(
        "--encoder",
        required=True,
        metavar="FOLDER_OR_FILE",
        help="an exported encoder (folder or Hub repository), a released .safetensors file, or contexts from "
        "`seecoder encode`",
    )
    group.add_argument("--vae", metavar="FOLDER_OR_FILE", help="another VAE than the base's")
    group.add_argument("--variant", help="variant of the base's weight files, such as fp16 or non_ema")
    group.add_argument(
        "--prediction-type", choices=PREDICTIONS, help="what the base's UNet predicts, where the base does not say"
    )
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one"
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: float16 on an accelerator, float32 on the CPU"
    )
    add_adapter_options(parser)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how to sample."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--height", type=int, help="pixels, a multiple of 8; default: what the base was trained at")
    group.add_argument("--width", type=int, help="the same")
    group.add_argument("--steps", type=int, default=50, help="denoising steps")
    group.add_argument(
        "--guidance", type=float, help="guidance scale; 1 or less switches it off; default: as the encoder records"
    )
    group.add_argument(
        "--guidance-rescale", type=float, default=0.0, help="fraction of the rescaled prediction, against over-exposure"
    )
    group.add_argument("--eta", type=float, default=0.0, help="DDIM's stochasticity")
    group.add_argument(
        "--scheduler", metavar="NAME", help="another scheduler of diffusers, such as DDIM or EulerDiscrete"
    )
    group.add_argument(
        "--method",
        action=_MethodAction,
        metavar="NAME[,NAME]",
        help="how to sample above the base's size: names, a preset, plain; list shows all with settings and costs",
    )
    group.add_argument(
        "--method-option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, or NAME.KEY=VALUE where methods share a name: a number, a word, true or false, "
        "none, (4, 8); may be repeated",
    )
    group.add_argument("--view-batch", type=int, default=16, help="windows that go through the UNet at once")
    add_autoencoder_memory(group)

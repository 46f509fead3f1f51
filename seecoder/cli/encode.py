"""Encode pictures once and keep their contexts in a safetensors file.

Row i of the file is the context of picture i; with --together there is one row for all of them. `seecoder vary
--encoder FILE` and `pipe(context=...)` take it, and so does any diffusers pipeline as `prompt_embeds`.

  seecoder encode cat.jpg dog.jpg --encoder my-encoder --out contexts.safetensors
"""

import argparse
import json
from pathlib import Path

from seecoder.call_rules import check_arguments
from seecoder.cli.console import check_new, say
from seecoder.cli.opening import encoded_side, files_of, load_encoder, pick_device, pick_dtype
from seecoder.cli.options import DTYPES, add_image_size, add_max_pixels
from seecoder.cli.varying.early_checks import check_networks, check_pictures

HELP = "keep the contexts of pictures in a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="pictures to encode, or folders of them")
    parser.add_argument(
        "--encoder", required=True, metavar="FOLDER_OR_FILE", help="exported encoder or released .safetensors file"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--together", action="store_true", help="make one context of all pictures")
    parser.add_argument("--weights", type=float, nargs="+", help="with --together: one number a picture")
    add_image_size(parser)
    add_max_pixels(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes an accelerator if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what to encode in")
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")


def run(arguments: argparse.Namespace) -> None:
    """Encode the pictures."""
    out = Path(arguments.out)
    if out.suffix != ".safetensors":
        raise ValueError(f"`--out` {out} must end in .safetensors.")
    if arguments.weights is not None and not arguments.together:
        raise ValueError("`--weights` has no effect without `--together`.")
    check_networks(arguments)
    check_arguments({"image_size": arguments.image_size})
    check_pictures(arguments.pictures)
    arguments.pictures = files_of(arguments.pictures)
    check_new([out], arguments.overwrite, arguments.pictures)
    from seecoder.encoder.context import ImageSet, normalise_weights, save_context
    from seecoder.images.gate import MAX_PIXELS, load_image
    from seecoder.images.scaling import encodable
    from seecoder.pipelines.conditioning import encode_pictures

    normalise_weights(arguments.weights, len(arguments.pictures))
    limit = MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels
    side = encoded_side(arguments)
    pictures = [encodable(path, load_image(path, max_pixels=limit), side) for path in arguments.pictures]
    entry = [ImageSet(pictures, arguments.weights)] if arguments.together else pictures
    device = pick_device(arguments.device)
    encoder = load_encoder(arguments.encoder, pick_dtype(arguments.dtype, device))
    say(f"encoding {len(arguments.pictures)} pictures with {arguments.encoder} on {device}")
    context, pooled = encode_pictures(encoder.to(device), entry, None, device, image_size=None)
    metadata = {"encoder": str(arguments.encoder), "sources": json.dumps(arguments.pictures)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_context(out, context, pooled, metadata)
    say(f"wrote {out}: {' x '.join(map(str, context.shape))} ({str(context.dtype).removeprefix('torch.')})")

"""Turn a released encoder into a folder for `SeeCoder.from_pretrained`, or a base in one file into a diffusers folder.

Plain or position-aware is read off the file. A pickle (.pth, .pt, .bin, .ckpt) can run code when it is opened; it is
read only with --allow-pickle, and even then only as tensors (weights_only=True).

  seecoder import seecoder-v1-0.safetensors my-encoder
  seecoder import v2-1_512.ckpt my-base --allow-pickle --prediction-type epsilon
  seecoder import seecoder-anime-v1-0.safetensors anime --negative anime_ug.pth --allow-pickle
"""

import argparse
import json
from pathlib import Path
from typing import Any

from seecoder.cli.console import check_replaceable, say
from seecoder.cli.options import PREDICTIONS

HELP = "turn a released file, or a base in one file, into a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", metavar="FILE", help="the released file")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read a pickle as tensors; only for sources that you trust"
    )
    parser.add_argument(
        "--config", metavar="JSON", help="a config.json with the encoder's sizes, if they are not the released ones"
    )
    parser.add_argument(
        "--prediction-type", choices=PREDICTIONS, help="of a base: what its UNet predicts, if the file does not say"
    )
    parser.add_argument(
        "--negative", metavar="FILE", help="a variant's learned negative context (Anime): one tensor of (tokens, width)"
    )
    parser.add_argument("--license", default="other", help="licence for the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(arguments: argparse.Namespace) -> None:
    """Import."""
    path = Path(arguments.file)
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is not a file; give a released file.")
    check_replaceable(Path(arguments.out), arguments.overwrite)
    from seecoder.base_model.single_file import SingleFile
    from seecoder.encoder.model import SeeCoder
    from seecoder.export.exporting import export_encoder
    from seecoder.export.model_card import CardFacts
    from seecoder.weights.atomic import atomic_directory

    config = _read_config(arguments.config)
    source = _source(path, arguments.allow_pickle)
    base = SingleFile.open(path) if source is path else SingleFile(str(path), source, {})
    is_base = base.has("unet")
    for name in ("config", "negative") if is_base else ("prediction_type",):
        if getattr(arguments, name) is not None:
            kind = "a base" if is_base else "no base"
            raise ValueError(f"`--{name.replace('_', '-')}` has no effect: `{path}` is {kind}; leave it out.")
    if is_base:
        with atomic_directory(arguments.out, overwrite=arguments.overwrite) as folder:
            base.save(folder, prediction_type=arguments.prediction_type)
        say(f"wrote {arguments.out}: UNet, VAE and scheduler of {path}")
        return
    encoder = SeeCoder.from_official(source, **config)
    if arguments.negative is not None:
        encoder.set_negative_context(_only_tensor(Path(arguments.negative), arguments.allow_pickle))
    variant = "position-aware (SeeCoder-PA)" if encoder.config["position_aware"] else "plain (SeeCoder)"
    say(f"{path}: {variant}, {str(encoder.dtype).removeprefix('torch.')}")
    facts = CardFacts(license=arguments.license, notes={"imported from": path.name})
    report = export_encoder(encoder, arguments.out, "hub", facts=facts, overwrite=arguments.overwrite)
    say(f"wrote {report.summary}")


def _source(path: Path, allow_pickle: bool) -> Any:
    """The tensors of a pickle with permission; else the path, for the strict reader, which says why it refuses one."""
    from seecoder.weights.pickles import read_pickle_allowed

    return read_pickle_allowed(path) if allow_pickle and path.suffix != ".safetensors" else path


def _only_tensor(path: Path, allow_pickle: bool) -> Any:
    """The one tensor of a file."""
    from seecoder.weights.safetensors_files import read_safetensors

    source = _source(path, allow_pickle)
    tensors = list((source if isinstance(source, dict) else read_safetensors(source)[0]).values())
    if len(tensors) != 1:
        raise ValueError(f"`--negative` {path} holds {len(tensors)} tensors; give a file with the one of the context.")
    return tensors[0]


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`--config` {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"`--config` {path} must hold one object.")
    return {key: value for key, value in config.items() if not key.startswith("_")}

"""Make a trained encoder ready to use: the trained part of a checkpoint, joined with its backbone.

CHECKPOINT is what training wrote (a file, or the folder of the run), or an encoder that is complete already (a folder,
or a released file) and only changes its form. The export is complete, and is checked by encoding one picture both ways
before it appears.

  hub       a folder for `SeeCoder.from_pretrained` and the Hub, with a model card
  official  one .safetensors file in the layout of the released files
  onnx      a folder with a graph for pictures of one size (needs the extra `onnx`)
"""

import argparse
from pathlib import Path
from typing import Any

from seecoder.checks import require, whole
from seecoder.cli.console import check_replaceable, say
from seecoder.cli.opening import load_encoder

HELP = "make a trained encoder ready to use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="training checkpoint or run folder; or a complete encoder"
    )
    parser.add_argument("out", metavar="OUT", help="the folder (hub, onnx) or file (official) to write")
    parser.add_argument("--format", choices=("hub", "official", "onnx"), default="hub", help="what to write")
    parser.add_argument(
        "--backbone", metavar="FOLDER_OR_FILE", help="where the frozen backbone is, if not where training found it"
    )
    parser.add_argument(
        "--best", action="store_true", help="of a run: the checkpoint that was best in validation, not the newest"
    )
    parser.add_argument("--no-ema", action="store_true", help="take the last weights, not their running average")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="what to store; default: as it is")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="onnx: pictures' size (512 512)")
    parser.add_argument("--license", default="other", help="licence for the model card")
    parser.add_argument(
        "--base-model", default="", metavar="REPOSITORY", help="base that it was trained with, for the model card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(arguments: argparse.Namespace) -> None:
    """Export."""
    if arguments.size and arguments.format != "onnx":
        raise ValueError("`--size` has no effect without `--format onnx`.")
    for side in arguments.size or ():
        require("--size", side, whole(1))
    source = Path(arguments.checkpoint)
    if not source.exists():
        raise FileNotFoundError(f"`{source}` does not exist; give a checkpoint, the folder of a run, or an encoder.")
    check_replaceable(Path(arguments.out), arguments.overwrite)
    import torch

    from seecoder.export.exporting import DEFAULT_ONNX_SIZE, export_encoder
    from seecoder.export.model_card import CardFacts
    from seecoder.export.run_folder import best_checkpoint

    if arguments.best:
        if not source.is_dir() or (source / "config.json").is_file():
            raise ValueError(f"`--best` needs the folder of a run, and `{source}` is none.")
        source = best_checkpoint(source)
    encoder, notes = _open_encoder(source, arguments.backbone, use_ema=not arguments.no_ema)
    if arguments.dtype:
        encoder = encoder.to(getattr(torch, arguments.dtype))
    say(f"writing {arguments.out} ({arguments.format}) and checking it with one picture")
    report = export_encoder(
        encoder,
        arguments.out,
        arguments.format,
        facts=CardFacts(license=arguments.license, base_model=arguments.base_model, notes=notes),
        size=(arguments.size[0], arguments.size[1]) if arguments.size else DEFAULT_ONNX_SIZE,
        overwrite=arguments.overwrite,
    )
    say(f"wrote {report.summary}; the contexts of one picture differ by {report.difference:.3g}")


def _open_encoder(path: Path, backbone: str | None, *, use_ema: bool) -> tuple[Any, dict[str, str]]:
    """Open a training checkpoint, or an encoder that is complete already.

    Args:
        path: The file or folder.
        backbone: Where the backbone of a checkpoint is, or None.
        use_ema: Take the running average of a checkpoint.

    Returns:
        The encoder, and facts for its model card.

    Raises:
        FileNotFoundError: Nothing is there.
        WeightsError: What is there does not fit.
        ValueError: A backbone for an encoder that has one.
    """
    from seecoder.encoder.official import is_official_file
    from seecoder.export.exporting import build_encoder
    from seecoder.export.trained_part import read_trained

    if (path / "config.json").is_file() or is_official_file(path):
        if backbone is not None:
            raise ValueError(f"`--backbone` has no effect: `{path}` is a complete encoder.")
        return load_encoder(str(path)), {}
    trained = read_trained(path)
    averaged = "the running average of the weights" if use_ema and trained.ema else "the last weights"
    source = backbone or trained.backbone_source
    say(f"{path}: {len(trained.trainable)} trained tensors, taking {averaged}; backbone {source}")
    return build_encoder(trained, use_ema=use_ema, backbone=backbone), {"weights": averaged}

"""Measure pictures: against reference pictures, against what they were made from, and by themselves.

Both are folders of pictures, shards, or folders of shards; GENERATED alone may be the folder of a training run that
keeps variations. Results of `seecoder vary` are matched with their inputs, others with pictures of the same name.

  seecoder eval cats photographs --network clip-vit-large-patch14 --network dinov2-base --network vgg.safetensors
  seecoder eval runs/first --world --json scores.json

With every --network: fid, kid, precision and recall of the sets; clip_i, dino_i or similarity, and lpips or
map_distance, of each picture and its input; intra_lpips and intra_style of panoramas. A network is a folder or file
on this machine: CLIP or DINO of transformers, LPIPS, a backbone. Without --network it is the world's,
which knows no photographs. Nothing is downloaded. Needs the extra `eval` (`pip install 'seecoder[eval]'`).
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seecoder.checks import require, whole
from seecoder.cli.console import check_new, say
from seecoder.cli.opening import pick_device
from seecoder.cli.options import add_max_pixels
from seecoder.cli.varying.early_checks import check_networks

HELP = "measure pictures"
_CHECKOUT = Path(__file__).resolve().parents[2]  # if this is one
_SHOWN = 5  # names in a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("generated", metavar="GENERATED", type=Path, help="the pictures to measure")
    parser.add_argument("reference", metavar="REFERENCE", type=Path, nargs="?", help="what they are compared with")
    parser.add_argument("--network", metavar="PATH", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--world", action="store_true", help="count with the world's reader, which a checkout has")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the scores, unrounded, with all names")
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes an accelerator if there is one")
    add_max_pixels(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure."""
    check_networks(arguments)
    require("--max-pixels", 1 if arguments.max_pixels is None else arguments.max_pixels, whole(1))
    generated, reference = arguments.generated, arguments.reference
    if (variations := generated / "variations").is_dir():  # a run's
        generated, reference = max(variations.glob("step-*"), default=generated), reference or variations / "inputs"
    networks = dict.fromkeys(arguments.network) or [_CHECKOUT / "data/world/base/backbone"]
    for path in filter(None, [generated, reference, *networks]):
        if not path.exists():
            raise FileNotFoundError(f"`{path}` does not exist; give a place on this machine, also with --network.")
    if arguments.json is not None:
        check_new([arguments.json], arguments.overwrite)
    if arguments.world and not (_CHECKOUT / "data/world/reader").is_dir():
        raise FileNotFoundError("`--world` has no reader here; install the project from its checkout, with pip -e.")
    if find_spec("torchmetrics") is None:
        raise ImportError("FID and KID need torchmetrics; install it (pip install 'seecoder[eval]').")
    from seecoder.evaluation import evaluate, find_pictures, open_network
    from seecoder.images.gate import MAX_PIXELS
    from seecoder.weights.atomic import write_text

    with TemporaryDirectory() as scratch:
        pictures = find_pictures(generated, Path(scratch, "generated"))
        references = find_pictures(reference, Path(scratch, "reference"), made=False) if reference else []
        say(f"{len(pictures)} pictures" + (f", and {len(references)} to compare them with" if reference else ""))
        opened = [open_network(path, pick_device(arguments.device)) for path in networks]
        result = evaluate(pictures, references, opened, _reader(arguments.world), arguments.max_pixels or MAX_PIXELS)
    for name, reason in result["bad"].items():
        say(f"{name} is left out: {reason}")
    if names := result["unmatched"]:
        say(f"{len(names)} pictures match none by name: {', '.join(names[:_SHOWN])}{', …' if names[_SHOWN:] else ''}")
    print(table(result["scores"]))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, json.dumps(result, indent=1) + "\n")


def _reader(is_world: bool) -> Callable[[Any, Any], dict[str, float]] | None:
    """The world's reader: the library does not import it, for it is not installed with it."""
    if not is_world:
        return None
    sys.path.append(str(_CHECKOUT))
    return import_module("data.world.reader.readings").score


def table(scores: list[dict[str, Any]]) -> str:
    """Rows of `evaluate` as lines of text, columns under each other."""
    rows: list[tuple[str, ...]] = [("metric", "network", "value", "±", "n", "reference", "")]
    for score in scores:
        numbers = [score[name] for name in ("value", "error", "count", "reference")]
        cells = ["" if number is None else f"{number:.4g}" for number in numbers]
        rows.append((score["metric"], score["network"], *cells, score["remark"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

"""`python -m data.cache`: lay latent moments beside the pictures of shards, so that training need not encode them.

    python -m data.cache SHARDS OUT --base FOLDER --size 512
    python -m data.cache SHARDS OUT --base FOLDER --size 512 --flip --dtype bfloat16 --threads 8
    python -m data.cache SHARDS OUT --base FOLDER --buckets '{resolutions: [1024]}'       # as in the training
    python -m data.cache SHARDS OUT --base FOLDER --size 512 --maps configs/sd15.yaml     # small sets only

OUT becomes a folder of shards like SHARDS, sample for sample, each with one more member. A training reads it in place
of SHARDS, or beside other folders, cached or not; the order of samples does not change. The moments are bound by hash
to the autoencoder, its dtype, the size or the buckets, and the crop: a training that would compute others refuses them.
With --maps, what the frozen backbone of that training makes of the pictures is laid beside them, too: 5.5 MB each for a
Swin-L.

One process uses one device. To use several, give each a folder of shards of its own. Stop it at any time, by any means;
the same command goes on where it stopped.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from data.command import build_aloud, make_parser, run_command
from data.shards.buckets import Buckets
from data.shards.building.shard_build import Build
from data.shards.caching.cached_samples import CachedSamples, with_present_digests
from data.shards.caching.maps import maps_beside
from data.shards.caching.moments import moments_beside
from data.shards.reading.skips import check_passed
from data.shards.reading.square_image import SquareImage
from data.shards.shard_set import open_shards
from data.unique_keys import load_unique
from seecoder.base_model.loading import load_frozen
from seecoder.encoder.model import SeeCoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run these arguments or the program's; gives 0, or 2 for bad input (one line on stderr), or 130 if interrupted."""
    return run_command(_parser(), _cache, arguments)


def _parser() -> ArgumentParser:
    parser = make_parser("python -m data.cache", __doc__)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="Folder of shards.")
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder for the copies with moments.")
    parser.add_argument("--base", required=True, help="Base model in diffusers' form: folder, or owner/name.")
    parser.add_argument("--size", type=int, default=512, help="Side of the training pictures in pixels.")
    parser.add_argument(
        "--buckets", type=Buckets | None, help="`buckets` of the training, in place of --size; `group` is of no matter."
    )
    parser.add_argument("--flip", action="store_true", help="Also of mirrored pictures, for a training that flips.")
    parser.add_argument(
        "--dtype", type=Literal["float32", "bfloat16"], default="float32", help="`vae_dtype` of the training."
    )
    parser.add_argument("--maps", type=Path | None, metavar="CONFIG", help="Also backbone maps, for this training.")
    parser.add_argument("--batch-size", type=int, default=8, help="Pictures encoded at once.")
    parser.add_argument("--device", help="Where to encode; a GPU if there is one.")
    parser.add_argument("--threads", type=int, default=2, help="Pictures decoded at the same time.")
    parser.add_argument("--max-bad-rate", type=float, default=0.01, help="Fraction of bad samples that is tolerated.")
    return parser


def _cache(options: Namespace) -> None:
    found = open_shards(options.shards)
    if options.out.resolve() in {Path(row.location).parent.resolve() for row in found.shards}:
        raise ValueError(f"`OUT`={options.out} is the folder that is read. Choose another folder.")
    if len({row.shard.name for row in found.shards}) < len(found.shards):
        raise ValueError(f"`SHARDS`={options.shards} has shards of one name in several folders. Cache each by itself.")
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"`device`={options.device}: {str(error).splitlines()[0]}") from error
    buckets = None if options.buckets is None else Buckets(**options.buckets.as_dict())
    if buckets is not None and options.maps is not None:
        raise ValueError(f"`maps`={options.maps} must be left out with `buckets`: maps are of squares only.")
    picture = SquareImage(options.size, buckets=buckets)
    vae = load_frozen(options.base, "vae", options.dtype).to(device)
    extras = [moments_beside(vae, picture.unit, options.flip, picture.cut_name)]
    moments = extras[0].source
    if options.maps is not None:
        extras.append(maps_beside(load_backbone(options.maps, vae.device), options.size, options.flip))
    shards = with_present_digests(found)
    values = sum(math.prod(shape) for extra in extras for _, shape in extra.source.columns.values())
    source = CachedSamples(shards, picture, tuple(extras), options.batch_size, options.threads)
    build = Build(source, options.out, max_bad_rate=options.max_bad_rate, originals=shards.shards)
    check_passed(found.passed, sum(found.counts), options.max_bad_rate)
    area = options.size**2 if buckets is None else max(buckets.resolutions) ** 2
    added = len(source) * (2 if options.flip else 1) * 2 * values * area / picture.unit**2  # two bytes each
    print(
        f"{len(source):,} samples of {len(shards.shards):,} shards -> {options.out}, with moments "
        f"{moments.describe(moments.settings)}{' and backbone maps' if options.maps else ''}"
        f"{', also mirrored' if options.flip else ''}, made on {vae.device}; about "
        f"{added / 1e6:,.1f} MB beside the pictures. What is finished there is verified and kept",
        flush=True,
    )
    build_aloud(build, 0, "samples have no moments")


def load_backbone(config: Path, device: torch.device) -> Any:
    """Build the `SeeCoder` of a training with its frozen backbone; the rest of it has random weights.

    Args:
        config: The training's YAML file, with `stage.init_args.encoder` and `backbone_weights`.
        device: Where the backbone computes.

    Raises:
        FileNotFoundError: The file, or the weights, do not exist.
        ValueError: It is no configuration of a SeeCoder training, or names no backbone weights.
        WeightsError: The weights are of another backbone.
    """
    try:
        stage = load_unique(config.read_text(encoding="utf-8"))["stage"]["init_args"]
        arguments, weights = dict(stage["encoder"]), str(stage["backbone_weights"] or "")
        encoder: Any = SeeCoder(**arguments)
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"`maps`={config} is no configuration of a SeeCoder training: {error!r}") from error
    if not weights:
        raise ValueError(f"`maps`={config} names no `backbone_weights`: maps of random weights are of no use.")
    if stage.get("encoder_size") is not None:
        raise ValueError(f"`maps`={config} has `encoder_size`: maps are of pictures at the size of training only.")
    encoder.load_backbone_weights(weights)
    encoder.backbone.to(getattr(torch, stage.get("frozen_dtype", "float32")))
    return encoder.eval().requires_grad_(False).to(device)


if __name__ == "__main__":
    sys.exit(main())

"""All measures of an evaluation, in one pass over each set of pictures, as rows of one table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from tqdm import tqdm

from seecoder.evaluation.detail import band_distance, compression_ratio, glcm_scores, radial_power_spectrum
from seecoder.evaluation.distributions import covered, fid, kid
from seecoder.evaluation.feature_networks import Network, intra_scores
from seecoder.evaluation.pictures import match
from seecoder.images.gate import MAX_PIXELS, ImageError, load_image

_SMALLEST_SET = 5  # pictures; fewer have no neighbours to speak of
_COLUMNS = ("network", "metric", "value", "error", "count", "reference", "remark")

Reader = Callable[[Tensor, Sequence[Path]], dict[str, float]]  # numbers of (3, H, W); paths of it and its input
Measured = dict[tuple[str, str], Any]  # numbers, features and spectrum of a picture, by network and metric
Row = dict[str, Any]


@torch.no_grad()
def evaluate(
    generated: Sequence[Path],
    reference: Sequence[Path] = (),
    networks: Sequence[Network] = (),
    reader: Reader | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Measure pictures as a set, against what they were made from, and by themselves.

    Args:
        generated: What is judged.
        reference: What it is compared with; none leaves only what needs none.
        networks: What they are looked at through.
        reader: Reads more numbers from each picture, such as the world's.
        max_pixels: A larger picture counts as bad.

    Returns:
        Ready for JSON: "generated" and "reference", how many were read; "pairs", how many; "unmatched", names of what
        belongs to no other; "bad", what cannot be read, and why; "scores", a list of rows: "network", "metric",
        "value", "error" (standard error of a mean; of KID standard deviation over subsets), "count" of pictures or
        pairs, "reference" (the same of the reference pictures), "remark".

    Raises:
        ImageError: None of the pictures of a set can be read.
    """
    bad: dict[str, str] = {}

    def readable(paths: Sequence[Path], title: str, inputs: Mapping[Path, Path]) -> dict[Path, Measured]:
        found: dict[Path, Measured] = {}
        for path in tqdm(paths, title, unit="picture", disable=None):
            try:
                found[path] = _measured([path, *filter(None, [inputs.get(path)])], networks, reader, max_pixels)
            except ImageError as error:
                bad[f"{path.parent.name}/{path.name}"] = error.reason
        if paths and not found:
            raise ImageError(f"{title} pictures", f"none can be read; of the last, {bad.popitem()[1]}")
        return found

    theirs = readable(reference, "reference", {})
    ours = readable(generated, "generated", match(generated, [*theirs]))
    pairs = match([*ours], [*theirs])
    scores = [*_of_pictures([*ours.values()], [*theirs.values()])]
    for network in networks if reference else ():
        scores += _of_features(network, ours, theirs, pairs)
    alone = [path.name for path in (*ours, *theirs) if path not in {*pairs, *pairs.values()}] if reference else []
    counts = {"generated": len(ours), "reference": len(theirs), "pairs": len(pairs)}
    return {**counts, "unmatched": alone, "bad": bad, "scores": scores}


def _measured(paths: Sequence[Path], networks: Sequence[Network], reader: Reader | None, max_pixels: int) -> Measured:
    """What a picture is by itself, and how far it is from its input, whose path may follow."""
    pixels, *inputs = (load_image(path, max_pixels=max_pixels)[None] for path in paths)
    found: Measured = {("", name): value for name, value in glcm_scores(pixels[0]).items()}
    found |= {("", "compression_ratio"): compression_ratio(pixels[0]), ("", "spectrum"): radial_power_spectrum(pixels)}
    for network in networks:
        found[network.name, "features"] = network.embed(pixels).double().cpu()
        found |= {(network.name, name): value for name, value in intra_scores(pixels, network).items()}
        if inputs and network.distance is not None:  # the input is brought to the size of what was made of it
            source = interpolate(inputs[0], pixels.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
            found[network.name, network.distance_name] = float(network.distance(pixels, source))
    if reader is not None:
        found |= {("reader", name): value for name, value in reader(pixels[0], paths).items()}
    return found


def _of_features(
    network: Network, ours: dict[Path, Measured], theirs: dict[Path, Measured], pairs: dict[Path, Path]
) -> Iterator[Row]:
    """FID, KID, precision, recall, and the cosines of pairs."""
    name = network.name

    def features(found: dict[Path, Measured], paths: Iterable[Path]) -> Tensor:
        return torch.cat([found[path][name, "features"] for path in paths])

    one, other = features(ours, ours), features(theirs, theirs)
    count, width = min(len(one), len(other)), one.shape[1]
    if count >= _SMALLEST_SET:
        remark = f"no more pictures than the {width} features: the covariance is singular" if count <= width else ""
        yield _row(name, "fid", fid(one, other), None, count, None, remark)
        yield _row(name, "kid", *kid(one, other), count, None, "± over subsets")
        yield _mean(name, "precision", covered(one, other).double())
        yield _mean(name, "recall", covered(other, one).double())
    if pairs:
        made, inputs = features(ours, pairs), features(theirs, pairs.values())
        chance = float(cosine_similarity(made, inputs.roll(len(pairs) // 2, 0)).mean())
        yield _mean(name, network.similarity, cosine_similarity(made, inputs), chance, "reference: other inputs")


def _of_pictures(ours: Sequence[Measured], theirs: Sequence[Measured]) -> Iterator[Row]:
    """Means of what pictures are by themselves, and how far their mean spectra are apart."""
    for key in dict.fromkeys(key for row in ours for key, value in row.items() if isinstance(value, float)):
        values, others = (torch.tensor([row[key] for row in rows if key in row]).double() for rows in (ours, theirs))
        yield _mean(*key, values, float(others.mean()) if len(others) else None)
    if theirs:
        spectra = (torch.cat([row["", "spectrum"] for row in rows]) for rows in (ours, theirs))
        yield _row("", "spectrum", band_distance(*spectra), None, len(ours), None, "decibels; for pictures of one size")


def _mean(network: str, metric: str, values: Tensor, reference: float | None = None, remark: str = "") -> Row:
    """The row of a mean, with its standard error."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return _row(network, metric, float(values.mean()), error, len(values), reference, remark)


def _row(*values: Any) -> Row:
    return dict(zip(_COLUMNS, values, strict=True))

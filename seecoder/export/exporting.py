"""Give an encoder away: as a folder for diffusers, in the layout of the released files, or as ONNX.

A training checkpoint holds the trained part only; `build_encoder` joins it with its backbone. Every export is complete,
and checks itself before it appears under its name: the weights of what was written are compared bit by bit, one picture
is encoded by it and by the encoder at hand, and if the two differ nothing is left behind.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from seecoder.encoder.model import SeeCoder
from seecoder.export.model_card import CardFacts, model_card
from seecoder.export.trained_part import BACKBONE_PREFIX, TrainedEncoder
from seecoder.weights.atomic import atomic_directory, atomic_path
from seecoder.weights.digests import tensors_sha256
from seecoder.weights.safetensors_files import WeightsError, read_header
from seecoder.weights.strict_loading import load_strict

Format = Literal["hub", "official", "onnx"]
# How far contexts, whose standard deviation is about 1, may lie apart. Equal weights read from a file lie elsewhere in
# memory, which changes the last bits of a product; another runtime or device sums in another order.
_ROUNDING = 100  # times the precision of the dtype
_FOREIGN_TOLERANCE = 1e-3
DEFAULT_ONNX_SIZE = (512, 512)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file or folder.
        num_tensors: Tensors that were written (the released layout fuses some, and has index tables).
        num_parameters: Their entries, index tables not counted.
        difference: Largest absolute difference between the two contexts of the check.
    """

    path: Path
    num_tensors: int
    num_parameters: int
    difference: float

    @property
    def summary(self) -> str:
        """What was written, in words."""
        return f"{self.path}: {self.num_tensors} tensors, {self.num_parameters:,} parameters"


def build_encoder(trained: TrainedEncoder, *, use_ema: bool = True, backbone: str | Path | None = None) -> SeeCoder:
    """Join the trained part of an encoder with the frozen backbone that it was trained on.

    Args:
        trained: From `read_trained`.
        use_ema: Take the running average of the weights where there is one.
        backbone: Where the backbone is now, if not where training found it; the same kinds as
            `TrainedEncoder.backbone_source`.

    Returns:
        The complete encoder, float32, in evaluation mode.

    Raises:
        FileNotFoundError: The backbone is not there.
        WeightsError: Tensors are missing or left over, or the backbone is another one than in training.
        ValueError: The checkpoint does not say where its backbone is, and `backbone` was not given.
    """
    encoder = SeeCoder(**trained.config)
    source = str(backbone or trained.backbone_source)
    if not source:
        raise ValueError("the checkpoint does not say where its backbone is; name it with `--backbone`.")
    try:
        encoder.load_backbone_weights(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Name the place where it is now with `--backbone`.") from error
    kept = {key: value for key, value in encoder.state_dict().items() if key.startswith(BACKBONE_PREFIX)}
    digest = tensors_sha256(encoder.backbone.state_dict())
    if trained.backbone_sha256 and digest != trained.backbone_sha256:
        raise WeightsError(
            f"`backbone`={source} is not the one that the encoder was trained on (sha256 {digest[:12]}... instead of "
            f"{trained.backbone_sha256[:12]}...). Name the right one with `--backbone`."
        )
    tensors = {**trained.trainable, **((trained.ema or {}) if use_ema else {})}
    # The average and the training run may be in another dtype; the encoder is whole in one.
    own = encoder.state_dict()
    tensors = {key: value.to(own[key].dtype) if key in own else value for key, value in tensors.items()}
    load_strict(encoder, {**kept, **tensors}, source="checkpoint")
    return encoder.eval()


def probe_picture(height: int = 72, width: int = 100) -> torch.Tensor:
    """Make the picture of the self-check: ramps and stripes with some noise, the same every time.

    Args:
        height: In pixels; the default is no multiple of any backbone's patch, on purpose.
        width: In pixels.

    Returns:
        (1, 3, height, width) float32 in [0, 1].
    """
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    stripes = (0.5 + 0.5 * torch.sin(40 * (rows + 2 * columns))).expand(height, width)
    picture = torch.stack([rows.expand(height, width), columns.expand(height, width), stripes])
    noise = torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    return (0.8 * picture + 0.2 * noise)[None]


def export_encoder(
    encoder: SeeCoder,
    out: str | Path,
    format: Format = "hub",
    *,
    facts: CardFacts | None = None,
    size: tuple[int, int] = DEFAULT_ONNX_SIZE,
    overwrite: bool = False,
) -> ExportReport:
    """Write a complete encoder, and check what was written.

    Args:
        encoder: The encoder, with all its weights.
        out: The folder ("hub", "onnx") or the safetensors file ("official") to write.
        format: "hub" for `SeeCoder.from_pretrained`, "official" for the released key layout, "onnx" for other runtimes.
        facts: What the model card says besides what can be read off the encoder.
        size: (height, width) of the pictures that the ONNX graph takes.
        overwrite: Replace what is there.

    Returns:
        What was written, and how well it agrees.

    Raises:
        FileExistsError: Something is there and `overwrite` is off.
        ValueError: An unknown format, or an encoder that the format has no place for.
        WeightsError: What was written does not give the same context; nothing is left of it.
    """
    if format not in get_args(Format):
        raise ValueError(f"`format`={format!r} must be one of {', '.join(get_args(Format))}.")
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = encoder.eval()
    num_tensors = len(encoder.state_dict())
    if format == "official":
        difference = _export_official(encoder, path, overwrite)
        num_tensors = len(read_header(path)[0])
    else:
        with atomic_directory(path, overwrite=overwrite) as folder:
            difference = _write_hub(encoder, folder) if format == "hub" else _write_onnx(encoder, folder, size)
            card = folder / "README.md"
            card.write_text(model_card(encoder, format, facts or CardFacts(), size), encoding="utf-8")
            for file in folder.iterdir():
                shutil.copymode(card, file)  # the safetensors library lets only the owner read
    num_parameters = sum(tensor.numel() for tensor in encoder.state_dict().values() if tensor.is_floating_point())
    return ExportReport(path, num_tensors, num_parameters, difference)


def _export_official(encoder: SeeCoder, path: Path, overwrite: bool) -> float:
    if path.suffix != ".safetensors":
        raise ValueError(f"`out`={path} must end in .safetensors for the released layout.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"`out`={path} exists; choose another name, or use --overwrite.")
    with atomic_path(path) as temporary:
        encoder.save_official(temporary)
        return _compare_weights(encoder, SeeCoder.from_official(temporary, **_config_of(encoder)))


def _write_hub(encoder: SeeCoder, folder: Path) -> float:
    encoder.save_pretrained(folder)
    return _compare_weights(encoder, SeeCoder.from_pretrained(folder, dtype=encoder.dtype))


def _write_onnx(encoder: SeeCoder, folder: Path, size: tuple[int, int]) -> float:
    from seecoder.export.onnx_graph import onnx_encoder, write_onnx

    config = _config_of(encoder)
    whole = SeeCoder(**config)
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in encoder.state_dict().items()
    }
    load_strict(whole, tensors, source="encoder")
    whole = whole.eval()
    write_onnx(whole, folder, size)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=list) + "\n", encoding="utf-8")
    return _compare_outputs(whole, onnx_encoder(folder), probe_picture(*size), _FOREIGN_TOLERANCE)


def _config_of(encoder: SeeCoder) -> dict[str, Any]:
    return {key: value for key, value in encoder.config.items() if not key.startswith("_")}


def _compare_weights(encoder: SeeCoder, written: SeeCoder) -> float:
    """Compare the weights of both encoders bit by bit, and what they make of one picture.

    Returns:
        The largest difference of their contexts.

    Raises:
        WeightsError: They differ.
    """
    ours, theirs = encoder.state_dict(), written.state_dict()
    for key, value in ours.items():
        if value.dtype != theirs[key].dtype or not torch.equal(value.cpu(), theirs[key]):
            raise WeightsError(
                f"the export does not check out: `{key}` differs from the encoder's. Nothing was written."
            )
    tolerance = _ROUNDING * torch.finfo(encoder.dtype).eps
    if encoder.device.type != "cpu":
        tolerance = max(tolerance, _FOREIGN_TOLERANCE)
    return _compare_outputs(encoder, written.encode, probe_picture(), tolerance)


@torch.no_grad()
def _compare_outputs(
    encoder: SeeCoder, written: Callable[[torch.Tensor], Any], pixels: torch.Tensor, tolerance: float
) -> float:
    """Encode one picture both ways.

    Returns:
        The largest difference of the contexts and pooled vectors.

    Raises:
        WeightsError: It is above the tolerance.
    """
    ours, theirs = encoder.encode(pixels.to(encoder.device)), written(pixels)
    pairs = [(ours.context, theirs.context)] + ([] if ours.pooled is None else [(ours.pooled, theirs.pooled)])
    difference = max(float((one.float().cpu() - other.float().cpu()).abs().max()) for one, other in pairs)
    if not difference <= tolerance:
        raise WeightsError(
            f"the export does not check out: its context of the same picture differs by {difference:.3g} (allowed: "
            f"{tolerance:g}). Nothing was written."
        )
    return difference

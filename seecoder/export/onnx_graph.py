"""The encoder as an ONNX graph, and that graph run by onnxruntime. Needs the extra `onnx`."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from seecoder.encoder.model import SeeCoder, SeeCoderOutput

FILE_NAME = "encoder.onnx"
_OPSET = 18


class _Plain(nn.Module):
    """The encoder with tensors in and tensors out."""

    def __init__(self, encoder: SeeCoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.encoder.encode(pixels)
        return (output.context,) if output.pooled is None else (output.context, output.pooled)


def write_onnx(encoder: SeeCoder, folder: Path, size: tuple[int, int]) -> None:
    """Write the encoder as a graph for pictures of one size.

    The windows of a Swin and the positions of its maps depend on the size, so the graph is made for one: `pixels` (1,
    3, H, W) float32 in [0, 1] -> `context` (1, T, D), and `pooled` (1, P) if the encoder has it.

    Args:
        encoder: In float32, on the CPU.
        folder: Gets `encoder.onnx`, and `encoder.onnx.data` with the weights.
        size: (height, width) of the pictures.

    Raises:
        ImportError: The extra `onnx` is not installed.
    """
    _require("onnx", "onnxscript")
    names = ["context", "pooled"] if encoder.config["pooled_dim"] else ["context"]
    torch.onnx.export(
        _Plain(encoder).eval(),
        (torch.zeros(1, 3, *size),),
        str(folder / FILE_NAME),
        input_names=["pixels"],
        output_names=names,
        opset_version=_OPSET,
        dynamo=True,
        external_data=True,
        verbose=False,
    )


def onnx_encoder(folder: Path) -> Callable[[torch.Tensor], SeeCoderOutput]:
    """Open a graph with onnxruntime.

    Args:
        folder: What `write_onnx` filled.

    Returns:
        Pixels (1, 3, H, W) -> contexts, as `SeeCoder.encode`.

    Raises:
        ImportError: The extra `onnx` is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / FILE_NAME), providers=["CPUExecutionProvider"])

    def encode(pixels: torch.Tensor) -> SeeCoderOutput:
        found = session.run(None, {"pixels": pixels.numpy()})
        return SeeCoderOutput(*(torch.from_numpy(values) for values in found))

    return encode


def _require(*names: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in names if find_spec(name) is None]:
        raise ImportError(f"{', '.join(missing)} is not installed; ONNX needs it: pip install 'seecoder[onnx]'.")

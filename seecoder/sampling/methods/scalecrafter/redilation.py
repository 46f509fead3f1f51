"""Re-dilation of convolutions: a trained kernel reaches `factor` times as far, integer or not, per axis.

Paper: He et al., "ScaleCrafter", ICLR 2024, arXiv 2310.07702, Eq. 2-3. A factor d is a dilation by D = ceil(d) on a
feature map enlarged by D / d, whose result is brought back to the size that the plain layer would give.

Layers compute another function of their input and weight for a while. Nothing of the layers themselves changes, so
that adapters, offloading and bit-identity survive (`convolutions`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from seecoder.sampling.methods.convolutions import convolved, convolving, unpacked
from seecoder.sampling.methods.scalecrafter.dispersion import DISPERSED, KERNEL, dispersed
from seecoder.sampling.methods.unet_levels import select
from seecoder.sampling.path import Patch, uncompiled
from seecoder.sampling.sizes import resized
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size

Factor = tuple[float, float]
Disperser = Callable[[torch.nn.Conv2d, torch.Tensor], torch.Tensor]  # (layer, its weight) -> the kernel in its place


def split_factor(factor: float) -> tuple[int, float]:
    """(D, u): the integer dilation and the enlargement that together make the factor, d = D / u (Eq. 3)."""
    dilation = math.ceil(factor - 1e-9)
    return dilation, dilation / factor


def progressive_factor(factor: float, index: int, until: int) -> float:
    """max(ceil(d * (tau - i) / tau), 2) for i < tau, then 1; never above d (Sec. 3.4)."""
    if index >= until or factor <= 1.0:
        return 1.0
    return min(factor, max(math.ceil(factor * (until - index) / until), 2))


def redilated(conv: torch.nn.Conv2d, factor: Factor, disperse: Disperser | None = None) -> AbstractContextManager[None]:
    """One convolution with its reach multiplied by `factor` (rows, columns), optionally with another kernel.

    Its output has the size of the plain layer's, ceil(H / stride), also on odd maps.

    Args:
        conv: A layer with "same" padding.
        factor: Reach of the changed layer in units of the plain layer's dilation.
        disperse: Makes dispersed weights (out, in, 5, 5) of the layer and its own; their taps stand `factor` apart.

    Raises:
        ValueError: If the layer does not pad its input to the same size.
    """
    if conv.padding != tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        raise ValueError(f"A convolution with padding={conv.padding} cannot be re-dilated: it must keep the size.")
    return convolving(conv, partial(_redilated, conv, factor, disperse))


def _redilated(
    conv: torch.nn.Conv2d,
    factor: Factor,
    disperse: Disperser | None,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """What a re-dilated layer gives: what goes in is enlarged, what comes out brought to the plain layer's size."""
    (rows, up_rows), (columns, up_columns) = split_factor(factor[0]), split_factor(factor[1])
    kernel = weight if disperse is None else disperse(conv, weight)
    dilation = (conv.dilation[0] * rows, conv.dilation[1] * columns)
    padding = (dilation[0] * (kernel.shape[-2] - 1) // 2, dilation[1] * (kernel.shape[-1] - 1) // 2)
    height, width = inputs.shape[-2:]
    bilinear = partial(resized, mode="bilinear", align_corners=False)
    enlarged = bilinear(inputs, (round(height * up_rows), round(width * up_columns)))
    stride = (conv.stride[0], conv.stride[1])
    outputs = convolved(conv, enlarged, kernel, bias, stride=stride, padding=padding, dilation=dilation)
    is_resized = (up_rows, up_columns) != (1.0, 1.0)
    return bilinear(outputs, (-(-height // stride[0]), -(-width // stride[1]))) if is_resized else outputs


class ReDilation(Patch):
    """Re-dilation of a UNet by patterns, over a part of the trajectory.

    Args:
        unet: A diffusers UNet.
        factors: Pattern (see `unet_levels`) -> factor (rows, columns); later patterns win where several match.
        until: The first step at which the network is plain again.
        progressive: Let the factors fall over those steps.
        disperse: Patterns of layers whose kernels are dispersed while they are dilated.
        disperse_until: The first step at which they are merely dilated.
        matrix: The 25 x 9 dispersion matrix.

    Raises:
        ValueError: If a pattern matches nothing.
    """

    def __init__(
        self,
        unet: Any,
        factors: Mapping[str, Factor],
        until: int,
        *,
        progressive: bool = False,
        disperse: Sequence[str] = (),
        disperse_until: int = 0,
        matrix: torch.Tensor | None = None,
    ) -> None:
        self._factors: dict[torch.nn.Conv2d, Factor] = {}
        for pattern, factor in factors.items():
            self._factors |= dict.fromkeys(select(unet, pattern).values(), factor)
        self._dispersed = {conv for pattern in disperse for conv in select(unet, pattern).values()}
        self._until = until
        self._progressive = progressive
        self._disperse_until = disperse_until
        self._matrix = matrix
        self._kernels: dict[torch.nn.Conv2d, torch.Tensor] = {}

    def factor_at(self, factor: Factor, index: int) -> Factor:
        """The factor at step `index` of a layer whose full factor is given."""
        if index >= self._until:
            return (1.0, 1.0)
        if not self._progressive:
            return factor
        rows, columns = (progressive_factor(value, index, self._until) for value in factor)
        return rows, columns

    @contextmanager
    def active(self, step: Step, size: Size) -> Iterator[None]:
        """The context in which layers have the factors and kernels of this step."""
        with ExitStack() as stack:
            for conv, full in self._factors.items():
                factor = self.factor_at(full, step.index)
                if max(factor) > 1.0:
                    disperse = self._disperser(conv, step.index)
                    # The taps of a dispersed kernel stand half as far apart, for the same reach.
                    reach = factor if disperse is None else (factor[0] / 2, factor[1] / 2)
                    stack.enter_context(redilated(conv, reach, disperse))
            if max((max(self.factor_at(full, step.index)) for full in self._factors.values()), default=1.0) > 1.0:
                stack.enter_context(uncompiled())
            yield

    def _disperser(self, conv: torch.nn.Conv2d, index: int) -> Disperser | None:
        """What disperses a layer's kernel at a step; None where it is not dispersed."""
        if conv not in self._dispersed or index >= self._disperse_until or self._matrix is None:
            return None
        if conv.kernel_size != (KERNEL, KERNEL):
            raise ValueError(f"Only {KERNEL}x{KERNEL} kernels can be dispersed to {DISPERSED}x{DISPERSED}.")
        return self._disperse

    def _disperse(self, conv: torch.nn.Conv2d, weight: torch.Tensor) -> torch.Tensor:
        """The dispersed kernel of a layer with such a weight; made once."""
        if conv not in self._kernels and self._matrix is not None:
            self._kernels[conv] = dispersed(unpacked(weight).detach(), self._matrix)
        return self._kernels[conv].to(weight.device)

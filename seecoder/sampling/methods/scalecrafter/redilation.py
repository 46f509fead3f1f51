"""Re-dilation of convolutions: a trained kernel reaches `factor` times as far, integer or not, per axis.

Paper: He et al., "ScaleCrafter", ICLR 2024, arXiv 2310.07702, Eq. 2-3. A factor d is a dilation by D = ceil(d) on a
feature map enlarged by D / d, whose result is brought back to the size that the plain layer would give.

Layers are changed in place (dilation, padding, for dispersion the kernel) and given back in a `finally`; nothing is
copied, so that adapters on the layers and bit-identity survive.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

from seecoder.sampling.methods.scalecrafter.dispersion import DISPERSED, KERNEL, dispersed
from seecoder.sampling.methods.unet_levels import select
from seecoder.sampling.path import Patch, changed
from seecoder.sampling.step import Step
from seecoder.sampling.views import Size

Factor = tuple[float, float]


def split_factor(factor: float) -> tuple[int, float]:
    """(D, u): the integer dilation and the enlargement that together make the factor, d = D / u (Eq. 3)."""
    dilation = math.ceil(factor - 1e-9)
    return dilation, dilation / factor


def progressive_factor(factor: float, index: int, until: int) -> float:
    """max(ceil(d * (tau - i) / tau), 2) for i < tau, then 1; never above d (Sec. 3.4)."""
    if index >= until or factor <= 1.0:
        return 1.0
    return min(factor, max(math.ceil(factor * (until - index) / until), 2))


@contextmanager
def redilated(conv: torch.nn.Conv2d, factor: Factor, kernel: torch.Tensor | None = None) -> Iterator[None]:
    """One convolution with its reach multiplied by `factor` (rows, columns), optionally with another kernel.

    Its output has the size of the plain layer's, ceil(H / stride), also on odd maps.

    Args:
        conv: A layer with "same" padding.
        factor: Reach of the changed layer in units of the plain layer's dilation.
        kernel: Dispersed weights (out, in, 5, 5); its taps then stand `factor` apart.

    Raises:
        ValueError: If the layer does not pad its input to the same size.
    """
    side = conv.kernel_size if kernel is None else tuple(kernel.shape[-2:])
    if conv.padding != tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        raise ValueError(f"A convolution with padding={conv.padding} cannot be re-dilated: it must keep the size.")
    (rows, up_rows), (columns, up_columns) = split_factor(factor[0]), split_factor(factor[1])
    dilation = (conv.dilation[0] * rows, conv.dilation[1] * columns)
    padding = (dilation[0] * (side[0] - 1) // 2, dilation[1] * (side[1] - 1) // 2)
    both_sides = [padding[1], padding[1], padding[0], padding[0]]
    values = {"dilation": dilation, "padding": padding, "_reversed_padding_repeated_twice": both_sides}
    if kernel is not None:
        values |= {"weight": torch.nn.Parameter(kernel, requires_grad=False), "kernel_size": side}
    with ExitStack() as stack:
        stack.enter_context(changed(conv, **values))
        if (up_rows, up_columns) != (1.0, 1.0):
            _resize(stack, conv, (up_rows, up_columns))
        yield


def _resize(stack: ExitStack, conv: torch.nn.Conv2d, enlargement: Factor) -> None:
    """Enlarge what goes in, and bring what comes out to the plain layer's size, until the stack is closed."""
    sizes: list[Size] = []

    def before(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        height, width = inputs[0].shape[-2:]
        sizes.append((-(-height // conv.stride[0]), -(-width // conv.stride[1])))
        return (_bilinear(inputs[0], (round(height * enlargement[0]), round(width * enlargement[1]))), *inputs[1:])

    def after(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return _bilinear(output, sizes.pop())

    stack.callback(conv.register_forward_pre_hook(before).remove)
    stack.callback(conv.register_forward_hook(after).remove)


def _bilinear(values: torch.Tensor, size: Size) -> torch.Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


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
                    kernel = self._kernel(conv, step.index)
                    # The taps of a dispersed kernel stand half as far apart, for the same reach.
                    reach = factor if kernel is None else (factor[0] / 2, factor[1] / 2)
                    stack.enter_context(redilated(conv, reach, kernel))
            yield

    def _kernel(self, conv: torch.nn.Conv2d, index: int) -> torch.Tensor | None:
        if conv not in self._dispersed or index >= self._disperse_until or self._matrix is None:
            return None
        if conv not in self._kernels:
            if conv.kernel_size != (KERNEL, KERNEL):
                raise ValueError(f"Only {KERNEL}x{KERNEL} kernels can be dispersed to {DISPERSED}x{DISPERSED}.")
            self._kernels[conv] = dispersed(conv.weight.detach(), self._matrix)
        return self._kernels[conv]

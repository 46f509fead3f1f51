"""How alike two pictures look: the loss that SyncDiffusion lets windows agree by.

The published one is LPIPS on VGG16, of weights that `scripts/convert_lpips.py` wrote. A loss is any callable
(N, 3, h, w), (N, 3, h, w) in [-1, 1] -> (N,), differentiable in its first argument.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch.nn import functional

from seecoder.checks import Rule

logger = logging.getLogger(__name__)

PerceptualLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LPIPS_WEIGHTS = Rule(
    lambda value: isinstance(value, str | os.PathLike) and Path(value).exists(),
    "the path of LPIPS weights that scripts/convert_lpips.py wrote",
)

_VGG_FILE = "vgg16-397923af.pth"  # torchvision's name for the weights that LPIPS stands on
_COARSEST = 4  # side of the coarsest level of the pyramid, in pixels


def pyramid_distance(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of local colour and local contrast over a pyramid of scales; needs no weights.

    At every halving of the resolution the pictures' local means (colour, layout) and local standard deviations
    (texture) are compared; the mean over scales is returned, (N,). It knows nothing of objects: the stated fallback
    where LPIPS has no weights.
    """
    total, levels = images.new_zeros(images.shape[0]), 0
    while min(images.shape[-2:]) >= 2 * _COARSEST:
        total = total + _difference(_contrast(images), _contrast(references))
        images, references = functional.avg_pool2d(images, 2), functional.avg_pool2d(references, 2)
        total = total + _difference(images, references)
        levels += 2
    return total / max(levels, 1)


def _contrast(images: torch.Tensor) -> torch.Tensor:
    mean = functional.avg_pool2d(images, 2)
    variance = functional.avg_pool2d(images.square(), 2) - mean.square()
    return (variance.clamp(min=0.0) + 1e-4).sqrt()  # the constant keeps the gradient finite on flat areas


def _difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).square().mean(dim=(1, 2, 3))


def lpips(device: torch.device) -> PerceptualLoss | None:
    """LPIPS on VGG (Zhang et al., CVPR 2018) if the `lpips` package and VGG's weights are on this machine, else None.

    Nothing is downloaded: the weights have to lie in torch's hub folder already.
    """
    if not (Path(torch.hub.get_dir()) / "checkpoints" / _VGG_FILE).is_file():
        return None
    try:
        package = import_module("lpips")
    except ImportError:
        return None
    model = package.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

    def loss(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        # float32 whatever the images are: half precision underflows in the gradient.
        return model(images.float(), references.float()).flatten()

    return loss


def find_loss(loss: PerceptualLoss | str | os.PathLike[str] | None, device: torch.device) -> PerceptualLoss:
    """The loss that is meant: a function itself, LPIPS on VGG16 for a path of weights, the default for None.

    Raises:
        FileNotFoundError: There are no weights.
        WeightsError: They do not fit.
    """
    if isinstance(loss, str | os.PathLike):
        from seecoder.lpips import load_lpips  # imports torchvision's models, which others do not wait for

        return load_lpips(loss).to(device)
    return default_loss(device) if loss is None else loss


def default_loss(device: torch.device) -> PerceptualLoss:
    """LPIPS where its weights are there, else `pyramid_distance`; the log says which."""
    loss = lpips(device)
    if loss is not None:
        return loss
    logger.warning(
        "SyncDiffusion: LPIPS is not available (package `lpips` and %s in torch's hub folder); windows are compared by "
        "a pyramid of local colour and contrast instead. Weights that scripts/convert_lpips.py makes can be named: "
        "`loss`=PATH.",
        _VGG_FILE,
    )
    return pyramid_distance

"""How alike two sets of pictures are as sets, by the features (N, D) of a network: FID, KID, precision and recall."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 1024  # points whose distances to all others are held at once


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance of normal distributions fitted to both (Heusel et al., NeurIPS 2017, equation 6)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return max(0.0, float(_computed(FrechetInceptionDistance, generated, reference)))  # not -1e-12, by rounding


def kid(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Unbiased squared MMD with the cubic kernel (Bińkowski et al., ICLR 2018, section 4): mean and standard deviation.

    They are over 100 random subsets of half of the smaller set (1000 pictures at most), the same ones each time.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(generated) // 2, len(reference) // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # features are kept, which is known
        torch.manual_seed(0)
        mean, std = _computed(KernelInceptionDistance, generated, reference, subsets=100, subset_size=size)
    return float(mean), float(std)


def _computed(metric_class: Any, generated: Tensor, reference: Tensor, **options: Any) -> Any:
    """What a metric of torchmetrics says of features; in the network's place it has what gives them as they are."""
    network: Any = nn.Identity()
    network.num_features = reference.shape[1]
    metric = metric_class(network, **options)
    metric.update(reference.double(), real=True)
    metric.update(generated.double(), real=False)
    return metric.compute()


def covered(points: Tensor, others: Tensor, neighbours: int = 3) -> Tensor:
    """Whether points (N, D) lie within the distance of any other to its k-th neighbour among (M, D) others; (N,) bool.

    Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (NeurIPS 2019),
    equations 1 and 2: the mean is the precision of generated points among reference points, or recall the other way.
    """

    def distances(part: Tensor) -> Tensor:  # exact: by the matrix product a point would not lie at itself
        return torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist")

    radii = torch.cat([distances(part).kthvalue(neighbours + 1).values for part in others.split(_ROWS)])
    return torch.cat([(distances(part) <= radii).any(1) for part in points.split(_ROWS)])

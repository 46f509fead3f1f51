"""The patch-adversarial loss of autoencoders.

Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis" (2021), section 3.1, equations 6 and
7; the discriminator is that of Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks"
(2017). It has group normalisation in place of batch normalisation, which is unsure at the batch sizes of autoencoders.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from seecoder.checks import Rule, check, number, whole
from train.settings import BETAS


@dataclass(frozen=True)
class AdversarialSettings:
    """Discriminator, its optimizer, and when it begins.

    Attributes:
        weight: Of the adversarial term, on top of the adaptive weight; 0 switches everything off.
        start_step: Optimizer step of the autoencoder at which the discriminator begins to train and to count.
        channels: Of its first layer.
        layers: Halvings of height and width.
        lr: Its learning rate.
        betas: Of its AdamW.
    """

    weight: float = 0.5
    start_step: int = 0
    channels: int = 32
    layers: int = 2
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        channels = Rule(lambda value: whole(8).accepts(value) and value % 8 == 0, "a multiple of 8")
        check(self, weight=number(0.0), start_step=whole(0), channels=channels, layers=whole(1), lr=number(0.0))
        check(self, betas=BETAS)


class PatchDiscriminator(nn.Sequential):
    """Says of each patch whether it is real: (N, 3, H, W) -> (N, 1, h, w) logits.

    Args:
        channels: Of the first layer.
        layers: Halvings of height and width.
    """

    def __init__(self, channels: int = 32, layers: int = 2) -> None:
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < layers else 1
            parts += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))


class Adversary:
    """A discriminator with its own optimizer, stepped outside of Lightning: a step stays one of the autoencoder.

    With two optimizers Lightning counts both towards `max_steps`.

    Args:
        discriminator: The discriminator. It asks for no gradient except while it is trained.
        settings: Weight, start, optimizer.
    """

    def __init__(self, discriminator: nn.Module, settings: AdversarialSettings) -> None:
        self.settings = settings
        self.discriminator = discriminator.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(discriminator.parameters(), lr=settings.lr, betas=settings.betas)

    def is_active(self, step: int) -> bool:
        """Whether the discriminator trains and counts at this step."""
        return self.settings.weight > 0 and step >= self.settings.start_step

    def generator_term(self, reconstruction: Tensor, output: Tensor, last_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial term of the autoencoder.

        Args:
            reconstruction: Its other losses, a scalar with a graph.
            output: (N, 3, H, W) with a graph.
            last_weight: Weight of its last layer.

        Returns:
            The weighted term, and the adaptive weight without `settings.weight`.
        """
        loss = -self.discriminator(output).float().mean()
        weight = adaptive_weight(reconstruction, loss, last_weight)
        return self.settings.weight * weight * loss, weight

    def train_step(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """One step of the discriminator with the hinge loss; gradients are averaged over micro-batches and processes.

        Where they are not finite, weights and moments stay as they are, in all processes alike.

        Args:
            pairs: Real pictures and outputs of each micro-batch, (N, 3, H, W) each; no gradient flows into them.

        Returns:
            The loss.
        """
        self.discriminator.requires_grad_(True)
        try:
            self.optimizer.zero_grad()
            losses = []
            for real, output in pairs:
                scores = [self.discriminator(images.detach()).float() for images in (real, output)]
                losses.append(hinge_loss(*scores) / len(pairs))
                losses[-1].backward()
            gradients = [weight.grad for weight in self.discriminator.parameters() if weight.grad is not None]
            average_over_processes(gradients)
            if torch.stack(torch._foreach_norm(gradients)).isfinite().all():
                self.optimizer.step()
        finally:
            self.discriminator.requires_grad_(False)
        return torch.stack(losses).sum().detach()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimizer (the weights are in the stage's own state), with the present run's settings."""
        self.optimizer.load_state_dict(state)
        for group in self.optimizer.param_groups:
            group.update(lr=self.settings.lr, betas=self.settings.betas)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 * (mean(relu(1 - real)) + mean(relu(1 + fake)))."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """How strongly the adversarial loss may pull: |d reconstruction / dW| / (|d adversarial / dW| + 1e-4), to 1e4.

    Both gradients are averaged over the processes first, so that all of them get the same weight.
    """
    losses = (reconstruction, adversarial)
    gradients = [torch.autograd.grad(loss, last_weight, retain_graph=True)[0].float() for loss in losses]
    average_over_processes(gradients)
    ours, theirs = (gradient.norm() for gradient in gradients)
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Put the mean over all processes in the place of each tensor, where there are several processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for tensor in tensors:
        distributed.all_reduce(tensor)
        tensor /= distributed.get_world_size()

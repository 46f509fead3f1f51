"""SeeCoder's training with its networks in float64: what then differs is a mistake, and not rounding."""

from typing import Any

from train.stages.seecoder import SeeCoderStage


class DoubleSeeCoderStage(SeeCoderStage):
    """Networks, gradients and optimizer in float64; pictures, noise and schedule as ever."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for part in (self.vae, self.unet, self.encoder):
            part.double()

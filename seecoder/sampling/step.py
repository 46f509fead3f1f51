"""Where a run is: all that a view, a weight, a patch, a guidance rule or an editor may depend on."""

from dataclasses import dataclass

import torch

from seecoder.sampling.views import Size


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        index: Place in the whole trajectory, 0 … count - 1.
        count: Steps of the whole trajectory.
        timestep: The training timestep as the scheduler gives it, a scalar tensor.
        time: The same as a number; formulas use it, so that no step waits for an accelerator.
        num_train_timesteps: Timesteps that the network was trained with.
        latent_size: (height, width) of the sample in cells.
        native_size: (height, width) in cells that the network was trained at.
        stage: Place of the stage in the run.
        keys: One seed per picture, for random choices such as jitter; empty if the stage makes none.
        first: The step that this trajectory begins with: 0, or a later one where a picture is redrawn.
        guidance: Factor on the guidance scale, which a callback may change between two steps; 0 is no guidance.
    """

    index: int
    count: int
    timestep: torch.Tensor
    time: float
    num_train_timesteps: int
    latent_size: Size
    native_size: Size
    stage: int = 0
    keys: tuple[int, ...] = ()
    first: int = 0
    guidance: float = 1.0

    def key(self, image: int) -> int:
        """The seed of this step's choices for one picture."""
        seed = self.keys[image] if self.keys else 0
        return (seed * 1_000_003 + self.stage * 10_007 + self.index) % 2**62

"""One random stream per picture, so that a picture does not depend on what else is in its batch.

Draws of a run, in this order: the initial noise; for every stage that adds noise one tensor, and one key if its windows
are jittered; inside the steps whatever the scheduler draws (ancestral schedulers, DDIM with `eta` > 0, LCM).
"""

from collections.abc import Callable, Sequence

import torch

from seecoder.checks import either, instance, optional, require, some_of

Generators = torch.Generator | Sequence[torch.Generator] | None

_SEED_LIMIT = 2**62
_ONE = instance(torch.Generator)
_GENERATORS = optional(either(_ONE, some_of(_ONE, "a list with one for every picture")))


class Randomness:
    """The random streams of a run, one generator per picture.

    A list of generators is used as it is, one per picture. A single generator serves picture 0 itself; picture b > 0
    gets its own generator, seeded with the b-th number that a copy of the given one would draw. So picture b is a
    function of the given generator and of b, whatever the batch size, and a batch of one draws exactly what
    diffusers' own loop would. Without a generator the streams are seeded from torch's global one.

    Args:
        generator: None, one generator or one per picture; CPU generators work for every device.
        batch_size: Number of pictures.

    Raises:
        ValueError: If it is something else, such as a seed, or a list of another length than `batch_size`.
    """

    def __init__(self, generator: Generators, batch_size: int) -> None:
        require("generator", generator, _GENERATORS)
        if isinstance(generator, Sequence):
            if len(generator) != batch_size:
                raise ValueError(
                    f"`generator` has {len(generator)} entries for {batch_size} pictures. "
                    "Give one generator, or one per picture."
                )
            self.generators = list(generator)
            return
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(_SEED_LIMIT, ()).item()))
        self.generators = [generator, *_descendants(generator, batch_size - 1)]

    def normal(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Standard normal numbers of the given shape; row b comes from the stream of picture b alone."""
        return self._rows(torch.randn, shape, device, dtype)

    def uniform(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Numbers from [0, 1) of the given shape; row b comes from the stream of picture b alone."""
        return self._rows(torch.rand, shape, device, dtype)

    def keys(self) -> tuple[int, ...]:
        """One integer per picture, drawn from its stream: the seed of choices that are made on the CPU (jitter)."""
        return tuple(map(_seed, self.generators))

    def _rows(
        self, draw: Callable[..., torch.Tensor], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        row = (1, *shape[1:])
        rows = [draw(row, generator=entry, device=entry.device, dtype=dtype) for entry in self.generators]
        return torch.cat([row.to(device) for row in rows])


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(_SEED_LIMIT, (), generator=generator, device=generator.device).item())


def _descendants(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Generators seeded by the numbers that a copy of `generator` draws; `generator` itself is not advanced."""
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return [torch.Generator(device=generator.device).manual_seed(_seed(copy)) for _ in range(count)]

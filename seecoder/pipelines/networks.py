"""Networks as plain callables for the sampling engine, in fewer rows where memory runs out, on every platform."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import concatenate, slice_tensors
from accelerate.utils.memory import clear_device_cache
from torch import nn

logger = logging.getLogger(__name__)

# What raised them: torch's allocators for CUDA, HIP, XPU, MPS and the CPU (Linux, Windows), the drivers, the libraries
# of linear algebra and convolution (cuBLAS, hipBLAS, rocBLAS, cuDNN, MIOpen), Metal, SYCL, C++ and DirectML.
_WORDS = re.compile(
    r"out of (device |host |gpu )?memory"
    r"|out_?of_?(device_?|host_?)?(memory|resources)"
    r"|(can't|cannot|could not|failed to|unable to) allocate"
    r"|(not enough|insufficient) memory"
    r"|alloc(ation)?_?failed"
    r"|rocblas_status_memory_error"
    r"|invalid buffer size"
    r"|bad_?alloc",
    re.IGNORECASE,
)


class HalvedOnDemand:
    """A network that is given fewer rows at a time once memory has run out.

    The rows of a batch do not see each other in these networks, so the result is the same up to rounding; only the time
    differs. The size that worked is kept for the following calls.

    Args:
        network: `network(latents, timestep, context, *rest, **conditions)`; every tensor but the timestep has N rows,
            and so have the tensors inside lists and mappings that it takes or returns. What it returns in a tuple of
            one, as diffusers' UNets do, is given without the tuple.
        name: What to call the network in the log.
        notes: What was done differently is said here.
    """

    def __init__(self, network: Callable[..., Any], name: str, notes: list[str]) -> None:
        self._network = network
        self._name = name
        self._notes = notes
        self._max_rows: int | None = None

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, *rest: Any, **conditions: Any) -> Any:
        """Evaluate all N rows, in as many parts as memory asks for.

        Raises:
            RuntimeError: Memory ran out for a single row.
        """
        count = latents.shape[0]
        while True:
            size = min(count, self._max_rows or count)
            parts = []
            try:
                for start in range(0, count, size):
                    given = (latents, rest, conditions)
                    if size < count:
                        given = slice_tensors(given, slice(start, start + size))
                    parts.append(self._network(given[0], timestep, *given[1], **given[2]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise RuntimeError(
                        f"no memory left for one row of {tuple(latents.shape[1:])} in the {self._name}. Ask for a "
                        "smaller size, or sample in windows (`method=MultiDiffusion()`)."
                    ) from error
            else:
                joined = parts[0] if len(parts) == 1 else concatenate(parts)
                return joined[0] if isinstance(joined, (list, tuple)) and len(joined) == 1 else joined
            # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
            del parts
            clear_device_cache()
            self._max_rows = half = size // 2
            note = f"the {self._name} ran out of memory at {size} rows; it gets {half} at a time, which takes longer."
            logger.warning(note)
            self._notes.append(note)


def module_attributes(network: nn.Module) -> Iterator[dict[str, Any]]:
    """The attributes of every module of a network, hooks among them; `modules` takes several times as long."""
    waiting = [network]
    while waiting:
        own = vars(waiting.pop())
        yield own
        waiting += [module for module in own["_modules"].values() if module is not None]


def working_dtype(network: Any) -> torch.dtype:
    """The data type that a network of diffusers' works in; its own `dtype` is asked only where a hook may change it."""
    first = next(network.parameters()).dtype
    is_hooked = any("_diffusers_hook" in own for own in module_attributes(network))
    return first if first.is_floating_point and not is_hooked else network.dtype


def bring_to_device(module: nn.Module) -> None:
    """Let diffusers' offloading bring a module to where it works, as it does when `forward` of the module is called.

    Args:
        module: A part of a pipeline, of which something else than `forward` is about to be called.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None

"""The UNet and the ControlNet as the plain callables that the sampling engine works with."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from seecoder.pipelines.bounded_memory import is_out_of_memory

logger = logging.getLogger(__name__)


class HalvedOnDemand:
    """A network that is given fewer rows at a time once memory has run out.

    The rows of a batch do not see each other in these networks, so the result is the same up to rounding; only the time
    differs. The size that worked is kept for the following calls.

    Args:
        call: `call(latents, timestep, context, *rest, **conditions)`; every tensor but the timestep has N rows, and so
            have the tensors inside lists and mappings that it takes or returns.
        name: what to call the network in the log.
    """

    def __init__(self, call: Callable[..., Any], name: str) -> None:
        self._call = call
        self._name = name
        self.max_rows: int | None = None
        self.notes: list[str] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, *rest: Any, **conditions: Any) -> Any:
        """Evaluate all N rows, in as many parts as memory asks for.

        Raises:
            RuntimeError: memory ran out for a single row.
        """
        rows = len(latents)
        while True:
            size = min(rows, self.max_rows or rows)
            try:
                parts = [
                    self._call(
                        latents[start : start + size],
                        timestep,
                        *(_rows(value, start, size) for value in rest),
                        **{name: _rows(value, start, size) for name, value in conditions.items()},
                    )
                    for start in range(0, rows, size)
                ]
                return parts[0] if len(parts) == 1 else _join(parts)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise RuntimeError(
                        f"no memory left for one row of {tuple(latents.shape[1:])} in the {self._name}. Ask for a "
                        "smaller size, or sample in windows (`method=MultiDiffusion()`)."
                    ) from error
            # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
            self._halve(size)

    def _halve(self, size: int) -> None:
        torch.cuda.empty_cache()
        self.max_rows = size // 2
        note = (
            f"the {self._name} ran out of memory at {size} rows; it gets {self.max_rows} at a time, which takes longer."
        )
        logger.warning(note)
        self.notes.append(note)


def _rows(value: Any, start: int, size: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start : start + size]
    if isinstance(value, Mapping):
        return {name: _rows(part, start, size) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rows(part, start, size) for part in value]
    return value


def _join(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _join([part[name] for part in parts]) for name in first}
    if isinstance(first, (list, tuple)):
        return [_join(list(column)) for column in zip(*parts, strict=True)]
    return torch.cat(parts)


def unet_denoiser(unet: Any, cross_attention_kwargs: Mapping[str, Any] | None = None) -> Callable[..., torch.Tensor]:
    """Make the engine's denoiser of a diffusers UNet.

    Args:
        unet: a `UNet2DConditionModel`.
        cross_attention_kwargs: what its attention processors are given besides (a LoRA's `scale`).

    Returns:
        `denoiser(latents, timestep, context, **conditions) -> output`, see `seecoder.sampling`.
    """
    extra = {} if cross_attention_kwargs is None else {"cross_attention_kwargs": dict(cross_attention_kwargs)}

    def denoise(
        latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, **conditions: Any
    ) -> torch.Tensor:
        return unet(latents, timestep, encoder_hidden_states=context, return_dict=False, **extra, **conditions)[0]

    return denoise


def control_residuals(
    controlnet: Any, scale: float, start: float, end: float, num_train_timesteps: int
) -> Callable[..., dict[str, Any]]:
    """Make the engine's control callable of a diffusers ControlNet.

    Args:
        controlnet: a `ControlNetModel`.
        scale: factor on all residuals.
        start: share of the trajectory after which control sets in; 0 is the noisiest end.
        end: share after which it stops; the share of a timestep t is 1 - t / num_train_timesteps.
        num_train_timesteps: of the scheduler.

    Returns:
        `residuals(latents, timestep, context, image) -> keyword arguments of the UNet`; no arguments outside the range.
    """

    def residuals(
        latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, image: torch.Tensor, **conditions: Any
    ) -> dict[str, Any]:
        if not (1.0 - end) * num_train_timesteps <= float(timestep) <= (1.0 - start) * num_train_timesteps:
            return {}
        down, middle = controlnet(
            latents,
            timestep,
            encoder_hidden_states=context,
            controlnet_cond=image,
            conditioning_scale=scale,
            return_dict=False,
            **conditions,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    return residuals

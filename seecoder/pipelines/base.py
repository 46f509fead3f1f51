"""What the pipelines for Stable Diffusion and SDXL share: their parts, and how these are loaded and saved."""

import os
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin

from seecoder.base_model.facts import check_widths, pixels_per_cell
from seecoder.base_model.loading import load_config, load_part
from seecoder.encoder.model import SeeCoder
from seecoder.pipelines.call import generate
from seecoder.pipelines.output import SeeCoderPipelineOutput
from seecoder.pipelines.request import CALLBACK_TENSORS, Conditioning, Request

__all__ = ["ContextPipeline"]

_PARTS = ("vae", "unet", "scheduler")
_HUB_OPTIONS = ("variant", "revision", "token", "cache_dir", "local_files_only")


class ContextPipeline(DiffusionPipeline, StableDiffusionMixin):
    """Base of `SeeCoderPipeline` and `SeeCoderXLPipeline`.

    One call at a time: like every diffusers pipeline it remembers the running call (`interrupt`). Components are never
    changed by a call, the scheduler is copied.

    Args:
        vae: the autoencoder.
        unet: the denoiser.
        scheduler: the schedule that the UNet was trained with.
        encoder: the SeeCoder; None if every call brings its `context`.
        controlnet: spatial control; None for none.

    Raises:
        ValueError: parts that do not fit each other.
    """

    model_cpu_offload_seq: ClassVar[str] = "encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["encoder", "controlnet"]
    _callback_tensor_inputs: ClassVar[list[str]] = list(CALLBACK_TENSORS)

    def __init__(self, vae: Any, unet: Any, scheduler: Any, encoder: Any = None, controlnet: Any = None) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, encoder=encoder, controlnet=controlnet)
        self.check_unet(unet)
        if encoder is not None:
            check_widths(unet, encoder.config["context_dim"], encoder.config["pooled_dim"])
        self.vae_scale_factor: int = pixels_per_cell(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._interrupt = False
        self._num_timesteps = 0

    # ----------------------------------------------------------------------------------------------------- loading

    @classmethod
    def from_base(
        cls,
        base: str | os.PathLike[str],
        encoder: Any = None,
        vae: Any = None,
        dtype: torch.dtype | None = None,
        controlnet: Any = None,
        **hub: Any,
    ) -> Self:
        """Put an encoder in the place of the text encoder of any base model.

        Only `unet/`, `vae/` and `scheduler/` are read; the text encoder is never loaded.

        Args:
            base: a diffusers folder, or a repository on the Hub.
            encoder: a `SeeCoder`; None if every call brings its `context`.
            vae: another autoencoder than the base's.
            dtype: what to hold the networks in, given ones included; None reads float32 and leaves given ones alone.
            controlnet: a `ControlNetModel`.
            hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            FileNotFoundError: no such folder, or a part or its safetensors file is missing.
            WeightsError: weights are missing, left over or of another shape.
            ValueError: parts that do not fit each other.
            TypeError: an unknown option.
        """
        _check_hub_options(hub)
        parts = {name: load_part(base, name, dtype, **hub) for name in _PARTS if name != "vae" or vae is None}
        if vae is not None:
            parts["vae"] = vae
        pipeline = cls(**parts, encoder=encoder, controlnet=controlnet)
        pipeline.register_to_config(_name_or_path=os.fspath(base))
        for module in (vae, encoder, controlnet):
            if module is not None and dtype is not None and module.dtype != dtype:
                module.to(dtype)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, encoder: Any = None, **components: Any) -> Self:
        """Share the networks of another pipeline, as they are: nothing is copied, cast or moved.

        Args:
            pipeline: any pipeline with a VAE, a UNet and a scheduler.
            encoder: a `SeeCoder`; None takes the other pipeline's, if it has one.
            components: further parts to use instead of the other pipeline's.

        Raises:
            ValueError: the other pipeline lacks a part, or the parts do not fit each other.
        """
        names = (*_PARTS, "encoder", "controlnet")
        unknown = sorted(set(components) - set(names))
        if unknown:
            raise TypeError(f"unknown component `{unknown[0]}`; a {cls.__name__} has {', '.join(names)}.")
        parts = {name: components.get(name, getattr(pipeline, name, None)) for name in names}
        parts["encoder"] = parts["encoder"] if encoder is None else encoder
        missing = [name for name in _PARTS if parts[name] is None]
        if missing:
            raise ValueError(f"a {type(pipeline).__name__} has no `{missing[0]}`; pass one to `from_pipe`.")
        return cls(**parts)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a folder or repository that `save_pretrained` wrote, strictly.

        Args:
            pretrained_model_name_or_path: the folder, or a repository on the Hub.
            kwargs: `dtype`; components to use instead of the saved ones; `variant`, `revision`, `token`, `cache_dir`,
                `local_files_only`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            FileNotFoundError: the folder, a part or its safetensors file is missing.
            WeightsError: weights are missing, left over or of another shape.
            ValueError: the folder holds another pipeline.
            TypeError: an unknown option.
        """
        base = pretrained_model_name_or_path
        dtype = kwargs.pop("dtype", None)
        given = {name: kwargs.pop(name) for name in (*_PARTS, "encoder", "controlnet") if name in kwargs}
        _check_hub_options(kwargs)
        index = load_config(base, "pipeline", **{name: value for name, value in kwargs.items() if name != "variant"})
        if index.get("_class_name") != cls.__name__:
            raise ValueError(
                f"`{base}` holds a {index.get('_class_name')}, not a {cls.__name__}. To use its networks with an "
                f"encoder: "
                f"{cls.__name__}.from_base({str(base)!r}, encoder=...)."
            )
        parts = dict(given)
        for name in (*_PARTS, "encoder", "controlnet"):
            if name in given or index.get(name, [None])[0] is None:
                continue
            if name == "encoder":
                parts[name] = SeeCoder.from_pretrained(base, subfolder=name, dtype=dtype or torch.float32, **kwargs)
            else:
                parts[name] = load_part(base, name, dtype, **kwargs)
        pipeline = cls(**parts)
        pipeline.register_to_config(_name_or_path=os.fspath(base))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the parts and an index to a folder for `from_pretrained`.

        Args:
            save_directory: the folder; created if it does not exist.
            args: those of `DiffusionPipeline.save_pretrained`.
            kwargs: those of `DiffusionPipeline.save_pretrained` (`variant`, `max_shard_size`, `push_to_hub`, ...).

        Raises:
            ValueError: a pickle was asked for.
        """
        if (args and args[0] is False) or kwargs.get("safe_serialization") is False:
            raise ValueError("`safe_serialization`=False would write pickles, which no reader here accepts.")
        super().save_pretrained(save_directory, *args, **kwargs)

    # ------------------------------------------------------------------------------------------------------ running

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call, all stages of its method together; 0 before the first step of the first call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to end the run (`pipe._interrupt = True`); the sample so far is then decoded."""
        return self._interrupt

    @torch.no_grad()
    def _run(self, request: Request) -> SeeCoderPipelineOutput | tuple[Any, ...]:
        self._interrupt = False
        try:
            output = generate(self, request)
        finally:
            self.maybe_free_model_hooks()
        return output if request.return_dict else (output.images, output.notes)

    # ------------------------------------------------------------------------------ where the two pipelines differ

    def check_unet(self, unet: Any) -> None:
        """Refuse a UNet of another family.

        Raises:
            ValueError: it is of another family.
        """
        raise NotImplementedError

    def upcasts_vae(self) -> bool:
        """Whether the VAE works in float32, whatever its dtype."""
        return False

    def added_conditions(self, request: Request, conditioning: Conditioning, size: tuple[int, int]) -> Any:
        """What the UNet is told besides the context; see `seecoder.sampling`.

        Args:
            request: the call.
            conditioning: its contexts.
            size: (height, width) of the result in pixels.
        """
        return None


def _check_hub_options(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - set(_HUB_OPTIONS))
    if unknown:
        raise TypeError(
            f"unknown option `{unknown[0]}`; besides parts and `dtype` there are {', '.join(_HUB_OPTIONS)}."
        )

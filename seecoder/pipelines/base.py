"""What the pipelines for Stable Diffusion and SDXL share: their parts, and how these are loaded and saved."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    MultiAdapter,
    MultiControlNetModel,
    SchedulerMixin,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from seecoder.base_model.facts import has_outdated_size, is_sdxl, pixels_per_cell
from seecoder.base_model.fit import check_parts
from seecoder.base_model.loading import load_beside, load_config, load_part
from seecoder.base_model.schedulers import check_scheduler, repaired
from seecoder.call_rules import CALLBACK_TENSORS, one_or_all
from seecoder.checks import instance, require
from seecoder.encoder.model import SeeCoder
from seecoder.lookup import check_source, saved_together
from seecoder.pipelines.adapters.control import check_adapter
from seecoder.pipelines.adapters.image_prompt import ImagePrompts
from seecoder.pipelines.adapters.lora import UnetLora
from seecoder.pipelines.conditioning import encode_pictures
from seecoder.pipelines.context.contexts import Contexts
from seecoder.pipelines.context.text import TEXT_PARTS, load_text_parts
from seecoder.pipelines.inputs import ImageSize, Pictures
from seecoder.pipelines.networks import module_attributes
from seecoder.pipelines.request import Request
from seecoder.sampling.conditions import AddedConditions
from seecoder.sampling.views import Size

ControlNets = ControlNetModel | MultiControlNetModel | Sequence[ControlNetModel]
Adapters = T2IAdapter | MultiAdapter | Sequence[T2IAdapter]

_PATH = (str, os.PathLike)
_PARTS = ("scheduler", "vae", "unet")  # what costs nothing first: it may be refused
_OPTIONAL_PARTS = ("encoder", "controlnet", "adapter", *TEXT_PARTS)
_CHECKED = ("unet", "vae", "encoder", "controlnet")
_GUIDANCE = 2.0  # suits released encoders
_HUB_OPTIONS = ("variant", "revision", "token", "cache_dir", "local_files_only")


class ContextPipeline(DiffusionPipeline, StableDiffusionMixin, UnetLora, ImagePrompts):
    """Base of `SeeCoderPipeline` and `SeeCoderXLPipeline`.

    One call at a time: like every diffusers pipeline it remembers the running call (`interrupt`). Components are never
    changed by a call, the scheduler is copied.

    Args:
        vae: The autoencoder.
        unet: The denoiser.
        scheduler: The schedule that the UNet was trained with.
        encoder: The SeeCoder; None if every call brings its `context`.
        controlnet: Spatial control by one ControlNet, or by several in a list; None for none.
        adapter: Spatial control by one T2I-Adapter, or by several in a list; None for none.
        image_encoder: What an IP-Adapter sees pictures with; `load_ip_adapter` brings it.
        feature_extractor: What prepares them for it.
        text_encoder: The base's own, for `text`; None if no call has any.
        tokenizer: That of `text_encoder`.
        text_encoder_2: SDXL's second one.
        tokenizer_2: That of `text_encoder_2`.

    Raises:
        ValueError: Parts that do not fit each other.
    """

    model_cpu_offload_seq: ClassVar[str] = "text_encoder->text_encoder_2->encoder->image_encoder->unet->vae"
    # Sequential offloading empties parameters that a module reads outside of its layers; the encoder stays whole.
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["encoder"]
    _optional_components: ClassVar[list[str]] = [*_OPTIONAL_PARTS, "image_encoder", "feature_extractor"]
    _callback_tensor_inputs: ClassVar[list[str]] = list(CALLBACK_TENSORS)
    _text_parts: ClassVar[tuple[str, ...]] = TEXT_PARTS[:2]
    unet_family: ClassVar[Literal["sd", "sdxl"]]  # of the UNets that it takes

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        encoder: SeeCoder | None = None,
        controlnet: ControlNets | None = None,
        adapter: Adapters | None = None,
        image_encoder: PreTrainedModel | None = None,
        feature_extractor: Any | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(controlnet, (list, tuple)):
            controlnet = MultiControlNetModel(list(controlnet)) if controlnet else None
        if isinstance(adapter, (list, tuple)):
            try:
                adapter = MultiAdapter(list(adapter)) if len(adapter) > 1 else next(iter(adapter), None)
            except ValueError as error:  # of several lines
                raise ValueError(f"`adapter`: {' '.join(str(error).split())}. Use those of one family.") from error
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, encoder=encoder, controlnet=controlnet)
        self.register_modules(adapter=adapter, image_encoder=image_encoder, feature_extractor=feature_extractor)
        text = (text_encoder, tokenizer, text_encoder_2, tokenizer_2)
        self.register_modules(**dict(zip(TEXT_PARTS, text, strict=True)))
        self._interrupt = False
        self._num_timesteps = 0

    def register_modules(self, **parts: Any) -> None:
        """Set parts as diffusers' pipelines do; what every base has is there, and no path in the place of a part."""
        for name, part in parts.items():
            if (part is None and name in _PARTS) or isinstance(part, _PATH):
                raise ValueError(
                    f"`{name}`={part} must be a loaded part; all have {', '.join(_PARTS)}. Use `from_base`."
                )
        super().register_modules(**parts)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part only if it fits the others; outdated configurations are repaired as diffusers' pipelines do.

        A UNet's is repaired in place, as there; of a scheduler a copy is set.

        Raises:
            ValueError: It does not fit, or is a scheduler that cannot sample a base.
        """
        if name == "scheduler" and value is not None:
            check_scheduler(value)
            value = repaired(value, steps_offset=self.unet_family == "sd")
        if name == "unet" and value is not None and has_outdated_size(value):
            value.register_to_config(sample_size=64)
        parts: dict[str, Any] = {**{part: self.__dict__.get(part) for part in _CHECKED}, name: value}
        if name in _CHECKED and None not in (parts["unet"], parts["vae"]):
            check_parts(**parts, expected=self.unet_family)
        if name == "adapter" and value is not None:
            check_adapter(self.unet, self.vae_scale_factor, value)
        super().__setattr__(name, value)
        if name == "vae" and value is not None:
            self.vae_scale_factor: int = pixels_per_cell(value)
            self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    # ----------------------------------------------------------------------------------------------------- loading

    @classmethod
    def from_base(
        cls,
        base: str | os.PathLike[str],
        encoder: SeeCoder | str | os.PathLike[str] | None = None,
        vae: AutoencoderKL | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        controlnet: ControlNets | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        adapter: Adapters | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        prediction_type: str | None = None,
        text: bool = False,
        torch_dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Put an encoder in the place of the text encoder of any base model.

        Only the UNet, the VAE and the scheduler are read, and the text encoder if `text` asks for it.

        Args:
            base: A diffusers folder, a checkpoint in one file, or a repository on the Hub.
            encoder: A `SeeCoder`, or its folder or repository; None if every call brings its `context`.
            vae: Another autoencoder than the base's, or its folder or file.
            dtype: What to hold the networks in, given ones included; None reads float32 and leaves given ones alone.
            controlnet: A `ControlNetModel`, its folder (and all that diffusers saved with it) or file; or a list.
            adapter: A `T2IAdapter`, or its folder (and all that diffusers saved with it); or a list.
            prediction_type: What the UNet predicts ("epsilon", "v_prediction"), where the base says nothing or errs.
            text: Load the base's text encoder, too, for texts beside the pictures.
            torch_dtype: Another name of `dtype`, as older diffusers have it.
            hub: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            FileNotFoundError: No such folder, or a part or its safetensors file is missing.
            WeightsError: Weights are missing, left over or of another shape.
            ValueError: Parts that do not fit each other.
            TypeError: An unknown option.
        """
        _check_hub_options(hub)
        dtype, encoder = _one_dtype(dtype, torch_dtype), _opened(encoder, dtype or torch_dtype, hub)
        parts: dict[str, Any] = {"vae": vae, "encoder": encoder, "controlnet": controlnet, "adapter": adapter}
        own = load_text_parts(base, cls._text_parts, dtype, **hub) if text else {}
        given = {name: part for name, part in parts.items() if part is not None}
        for name, part in given.items():  # before the base's own are read, which takes long
            for member in part if isinstance(part, (list, tuple)) else [part]:
                if isinstance(member, _PATH):
                    check_source(name, member)
            if isinstance(part, _PATH) and name != "vae":
                inner = os.path.join(part, name)
                given[name] = one_or_all(saved_together(inner if os.path.isdir(inner) else os.fspath(part)))
        own |= {
            name: load_part(base, name, dtype, prediction_type=prediction_type, **hub)
            for name in _PARTS
            if name not in given
        }

        def loaded(name: str, part: Any) -> Any:
            if isinstance(part, (list, tuple)):
                return [loaded(name, member) for member in part]
            return load_beside(part, name, dtype, sdxl=is_sdxl(own["unet"])) if isinstance(part, _PATH) else part

        pipeline = cls(**{name: loaded(name, part) for name, part in given.items()}, **own)
        pipeline.register_to_config(_name_or_path=os.fspath(base))
        for part in filter(None, [getattr(pipeline, name) for name in given]):
            if dtype is not None and part.dtype != dtype:
                part.to(dtype)
        return pipeline

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        encoder: SeeCoder | str | os.PathLike[str] | None = None,
        **components: Any,
    ) -> Self:
        """Share the networks of another pipeline, as they are: nothing is copied, cast or moved.

        Args:
            pipeline: Any pipeline with a VAE, a UNet and a scheduler.
            encoder: A `SeeCoder`, or its folder or repository, which is then loaded in the other pipeline's dtype; None
                takes the other pipeline's, if it has one.
            components: Further parts to use instead of the other pipeline's.

        Raises:
            ValueError: The other pipeline lacks a part, or the parts do not fit each other.
            TypeError: A component that this pipeline does not have.
        """
        names = (*_PARTS, *_OPTIONAL_PARTS)
        if unknown := sorted(set(components) - set(names)):
            raise TypeError(f"unknown component `{unknown[0]}`; a {cls.__name__} has {', '.join(names)}.")
        parts: dict[str, Any] = {name: components.get(name, getattr(pipeline, name, None)) for name in names}
        if encoder is not None:
            parts["encoder"] = _opened(encoder, getattr(parts["unet"], "dtype", None), {})
        return cls(**parts)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a folder or repository that `save_pretrained` wrote, strictly.

        Args:
            pretrained_model_name_or_path: The folder, or a repository on the Hub.
            kwargs: `dtype` (or `torch_dtype`); components to use instead of the saved ones, `encoder` also as a folder
                or repository; `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            FileNotFoundError: The folder, a part or its safetensors file is missing.
            WeightsError: Weights are missing, left over or of another shape.
            ValueError: The folder holds another pipeline.
            TypeError: An unknown option.
        """
        base = pretrained_model_name_or_path
        dtype = _one_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        parts: dict[str, Any] = {name: kwargs.pop(name) for name in (*_PARTS, *_OPTIONAL_PARTS) if name in kwargs}
        _check_hub_options(kwargs)
        if "encoder" in parts:
            parts["encoder"] = _opened(parts["encoder"], dtype, kwargs)
        index = load_config(base, "pipeline", **{name: value for name, value in kwargs.items() if name != "variant"})
        if index.get("_class_name") != cls.__name__:
            raise ValueError(
                f"`{base}` holds a {index.get('_class_name')}, not a {cls.__name__}. To use its networks with an "
                f"encoder: {cls.__name__}.from_base({str(base)!r}, encoder=...)."
            )
        for name in (*_PARTS, *_OPTIONAL_PARTS):
            if name in parts or index.get(name, [None])[0] is None:
                continue
            if name == "encoder":
                parts[name] = SeeCoder.from_pretrained(base, subfolder=name, dtype=dtype or torch.float32, **kwargs)
            elif name in TEXT_PARTS:
                parts |= load_text_parts(base, [name], dtype, **kwargs)
            else:
                parts[name] = _load_all(base, name, str(index[name][1]), dtype, kwargs)
        pipeline = cls(**{**dict.fromkeys(_PARTS), **parts})
        pipeline.register_to_config(_name_or_path=os.fspath(base))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the parts and an index to a folder for `from_pretrained`.

        Args:
            save_directory: The folder; created if it does not exist.
            args: Those of `DiffusionPipeline.save_pretrained`.
            kwargs: Those of `DiffusionPipeline.save_pretrained` (`variant`, `max_shard_size`, `push_to_hub`, ...).

        Raises:
            ValueError: A pickle was asked for, a LoRA or an IP-Adapter is still loaded, or the folder holds more.
        """
        if any(".lora_" in name or ".to_k_ip" in name for name in self.unet.state_dict()):
            raise ValueError(
                "the UNet holds an adapter, which the folder could not be read with again. Call `fuse_lora()` and "
                "`unload_lora_weights()`, or `unload_ip_adapter()`, first."
            )
        if (args and args[0] is False) or kwargs.get("safe_serialization") is False:
            raise ValueError("`safe_serialization`=False would write pickles, which no reader here accepts.")
        for name in ("controlnet", "adapter"):
            part, there = getattr(self, name), saved_together(os.path.join(save_directory, name))
            count = len(getattr(part, "nets", getattr(part, "adapters", [part])))
            if part is not None and len(there) > count:
                raise ValueError(
                    f"`save_directory` holds {there[count]}, which would be read as one of `{name}`. Remove it."
                )
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

    @property
    def _execution_device(self) -> torch.device:
        """Where the networks work, by the UNet's hooks of offloading; diffusers asks all parts, which takes longer."""
        hooks = list(module_attributes(self.unet))
        if any("_diffusers_hook" in own for own in hooks):
            return super()._execution_device
        devices = [getattr(own.get("_hf_hook"), "execution_device", None) for own in hooks]
        found = [device for device in devices if device is not None]
        return torch.device(found[0]) if found else next(self.unet.parameters()).device

    @property
    def default_guidance(self) -> float:
        """The `guidance_scale` of a call that names none: what the encoder records, or 2.0."""
        return _GUIDANCE if self.encoder is None else float(self.encoder.config["guidance_scale"])

    def encode_context(
        self, image: Pictures, context_weights: Sequence[float] | None = None, image_size: ImageSize = "trained"
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures once, to use them often: `pipe(context=...)`, `save_context`, or any diffusers pipeline.

        Stock pipelines take contexts as `prompt_embeds`, with zeros of their shape as `negative_prompt_embeds`, and
        pooled vectors as `pooled_prompt_embeds`.

        Args:
            image: One picture (path, bytes, PIL image, array or tensor); a list of pictures, each its own context; or,
                in place of a picture, an inner list or an `ImageSet` of pictures that together make one context.
            context_weights: One number >= 0 for every picture of an inner list.
            image_size: Pictures of more pixels than a square of this side are reduced to as many; None keeps them.
                "trained" is the side that the encoder was trained at.

        Returns:
            (N, T, D), one row an entry of `image`; for SDXL with pooled vectors (N, P).

        Raises:
            ImageError: A picture that cannot be read.
            ValueError: Weights that do not fit.
        """
        context, pooled = encode_pictures(self.encoder, image, context_weights, self._execution_device, image_size)
        return context if pooled is None or not is_sdxl(self.unet) else (context, pooled)

    def context_arguments(self, image: Pictures, image_size: ImageSize = "trained") -> dict[str, torch.Tensor]:
        """Encode pictures once, for many calls: `pipe(**pipe.context_arguments("cat.jpg"), generator=...)`.

        Args:
            image: One picture (path, bytes, PIL image, array or tensor); a list of pictures, each its own context; or,
                in place of a picture, an inner list or an `ImageSet` of pictures that together make one context.
            image_size: Pictures of more pixels than a square of this side are reduced to as many; None keeps them.
                "trained" is the side that the encoder was trained at.

        Returns:
            `context` (N, T, D), and for SDXL `pooled_context` (N, P).
        """
        encoded = self.encode_context(image, image_size=image_size)
        encoded = encoded if isinstance(encoded, tuple) else (encoded,)
        return dict(zip(("context", "pooled_context"), encoded, strict=False))

    # ------------------------------------------------------------------------------ where the two pipelines differ

    def upcasts_vae(self) -> bool:
        """Whether the VAE works in float32, whatever its dtype."""
        return False

    def added_conditions(self, request: Request, contexts: Contexts, size: Size) -> AddedConditions | None:
        """What the UNet is told besides the context, for `seecoder.sampling.sample`.

        Args:
            request: The call.
            contexts: Its contexts, with pooled vectors if the encoder or the call gives any.
            size: (height, width) of the result in pixels.
        """
        return None


def _load_all(
    base: str | os.PathLike[str], name: str, class_name: str, dtype: torch.dtype | None, hub: dict[str, Any]
) -> Any:
    """Load a part, or the list of its members, which lie in folders of their own."""
    if not class_name.startswith("Multi"):
        return load_part(base, name, dtype, **hub)
    options = {option: value for option, value in hub.items() if option != "variant"}
    folder = base if os.path.isdir(base) else snapshot_download(str(base), allow_patterns="*/config.json", **options)
    members = saved_together(os.path.join(folder, name))
    return [load_part(base, os.path.basename(member), dtype, **hub) for member in members]


def _check_hub_options(options: dict[str, Any]) -> None:
    if unknown := sorted(set(options) - set(_HUB_OPTIONS)):
        raise TypeError(
            f"unknown option `{unknown[0]}`; besides parts and `dtype` there are {', '.join(_HUB_OPTIONS)}."
        )


def _one_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """The data type under either of its names.

    Raises:
        ValueError: It is none, or the two names contradict each other.
    """
    for given in filter(None, (dtype, torch_dtype)):  # diffusers takes "float16" for float32
        require("dtype", given, instance(torch.dtype))
    if None not in (dtype, torch_dtype) and dtype != torch_dtype:
        raise ValueError(f"`torch_dtype`={torch_dtype} contradicts `dtype`={dtype}; give one of them.")
    return torch_dtype if dtype is None else dtype


def _opened(
    encoder: SeeCoder | str | os.PathLike[str] | None, dtype: torch.dtype | None, hub: dict[str, Any]
) -> SeeCoder | None:
    """The encoder, loaded where a folder or repository is named; `variant` and `revision` are those of the base."""
    if not isinstance(encoder, str | os.PathLike):
        return encoder
    options = {name: value for name, value in hub.items() if name not in ("variant", "revision")}
    return SeeCoder.from_pretrained(os.fspath(encoder), dtype=dtype or torch.float32, **options)

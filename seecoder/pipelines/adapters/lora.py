"""LoRA in the UNet, and in text encoders where there are any: what diffusers' loaders do, strictly."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_diffusers,
    convert_unet_state_dict_to_peft,
)

from seecoder.lookup import check_source, is_local
from seecoder.weights.safetensors_files import WeightsError, read_header

logger = logging.getLogger(__name__)

_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # by what a cross-attention layer reads


class UnetLora(LoraBaseMixin):
    """LoRA for a pipeline that may lack the text encoders.

    `load_lora_weights`, `set_adapters`, `fuse_lora` and the others are diffusers' own; here is what they would do
    silently or wrongly.
    """

    unet: Any

    @classmethod
    def lora_state_dict(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a LoRA's file: safetensors only, and errors in one line.

        Names that say nothing of a network (of peft, and of diffusers before 0.17) are those of the UNet.

        Raises:
            FileNotFoundError: There is no such file.
            WeightsError: It is damaged, a pickle, or something else than a LoRA.
        """
        loader: Any = super()
        if not isinstance(source, Mapping):
            check_source("lora", source, **kwargs)
            inner = (kwargs.get(name) or "" for name in ("subfolder", "weight_name"))
            path = Path(source) if Path(source).is_file() else Path(source, *inner)
            if is_local(source) and not path.is_dir():
                read_header(path)
        try:
            tensors, *others = loader.lora_state_dict(source, *args, **{"use_safetensors": True, **kwargs})
            if not any(name.startswith(("unet.", "text_encoder")) for name in tensors):
                tensors = {f"unet.{name.removeprefix('base_model.model.')}": tensors[name] for name in tensors}
            if strange := [name for name in tensors if "lora" not in name]:
                raise KeyError(strange[0])
            return tensors, *others
        except (ValueError, KeyError) as error:
            names = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"the LoRA has weights that no layer of a Stable Diffusion UNet takes: {names}"
            ) from error

    @classmethod
    def load_lora_into_unet(
        cls, state_dict: Mapping[str, torch.Tensor], network_alphas: Any, unet: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Load a LoRA's layers into the UNet; diffusers calls it.

        Raises:
            ValueError: Another one is fused, beside which it would change nothing, or `adapter_name` has a dot.
            WeightsError: No layer of the LoRA is one of the UNet, or one has another size.
        """
        _check_unfused(unet, "load_lora_weights")
        if "." in (name := kwargs.get("adapter_name") or ""):  # torch has no modules of such names
            raise ValueError(f"`adapter_name`={name!r} must have no dot. Use {name.replace('.', '_')!r}.")
        check_lora(unet, {name: value for name, value in state_dict.items() if not name.startswith("text_encoder")})
        loader: Any = super()
        with warnings.catch_warnings():  # several LoRAs in one UNet are meant
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            try:
                loader.load_lora_into_unet(_with_alphas(state_dict, network_alphas), None, unet, *args, **kwargs)
            except RuntimeError as error:
                raise WeightsError(f"the LoRA does not fit this base: {' '.join(str(error).split())[:200]}") from error

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        network_alphas: Any,
        text_encoder: Any,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA's layers into a text encoder, or say that there is none; diffusers calls it."""
        if text_encoder is not None:
            loader: Any = super()
            # diffusers knows the names of kohya's files by `out_proj` alone, which not every file has.
            named = convert_state_dict_to_diffusers(state_dict, StateDictType.DIFFUSERS_OLD)
            try:
                loader.load_lora_into_text_encoder(named, network_alphas, text_encoder, prefix, **kwargs)
            except (ValueError, RuntimeError, KeyError) as error:
                raise WeightsError(
                    "the LoRA's part for the text encoder does not fit the base's. Use a LoRA of this base's family."
                ) from error
            return
        if count := sum(name.startswith(f"{prefix or 'text_encoder'}.") for name in state_dict):
            logger.warning("%d weights of the LoRA are for a text encoder and left out: there is none here.", count)

    def fuse_lora(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> None:
        """Add LoRAs, the active ones or those of `adapter_names`, to the networks' own weights.

        Raises:
            ValueError: No LoRA is loaded and on, or one is fused already.
        """
        _check_unfused(self.unet, "fuse_lora")
        networks = filter(None, [getattr(self, name, None) for name in self._lora_loadable_modules])
        layers = [layer for network in networks for layer in network.modules() if hasattr(layer, "merged_adapters")]
        if not self.get_list_adapters() or any(layer.disable_adapters for layer in layers):
            raise ValueError("`fuse_lora` has no effect: no LoRA is loaded and on. Load one, or call `enable_lora`.")
        if left := sorted(set(self.get_active_adapters()).difference(adapter_names or self.get_active_adapters())):
            logger.warning("%s: active, but not seen while other LoRAs are fused, as `adapter_names` says.", left)
        self._scales = {layer: dict(layer.scaling) for layer in layers}
        super().fuse_lora(*args, adapter_names=adapter_names, **kwargs)

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """Take fused LoRAs out of the networks' weights again; their own are those before `fuse_lora`.

        Raises:
            ValueError: No LoRA is fused, or it was unloaded since, and its weights cannot be told apart any more.
        """
        if not _fused(self.unet):
            raise ValueError("`unfuse_lora` has no effect: no LoRA is fused, or it was unloaded since.")
        super().unfuse_lora(*args, **kwargs)
        for layer, scales in getattr(self, "_scales", {}).items():  # which `lora_scale` has multiplied
            if not layer.merged:
                layer.scaling.update(scales)

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Choose the active LoRAs and their weights, as diffusers' `set_adapters`.

        Raises:
            ValueError: A LoRA is fused, so that this would change nothing, or none is named.
        """
        _check_unfused(self.unet, "set_adapters")
        if not adapter_names:
            raise ValueError(f"`adapter_names`={adapter_names!r} must name a LoRA. Call `disable_lora()` to have none.")
        super().set_adapters(adapter_names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs, as diffusers' `delete_adapters`.

        Raises:
            ValueError: A LoRA is fused, and would stay in the weights.
        """
        _check_unfused(self.unet, "delete_adapters")
        super().delete_adapters(adapter_names)

    def check_lora_scale(self, cross_attention_kwargs: Mapping[str, Any] | None) -> None:
        """Refuse a call's `scale` of LoRAs where none is loaded, or where they are fused: it would change nothing."""
        scale = (cross_attention_kwargs or {}).get("scale", 1.0)
        if scale != 1.0 and (_fused(self.unet) or not self.get_list_adapters()):
            raise ValueError(
                f"`cross_attention_kwargs`: its scale={scale} has no effect, since no LoRA is loaded, or it is fused. "
                "Leave it out, or give `lora_scale` to `fuse_lora`."
            )


@contextmanager
def kept_lora_weights(network: Any) -> Iterator[None]:
    """Put the weights of LoRAs back as they were: after a factor of 0 diffusers makes them 1, after others it rounds.

    Args:
        network: A UNet or text encoder, with LoRAs or without.
    """
    kept = {layer: dict(layer.scaling) for layer in network.modules() if hasattr(layer, "merged_adapters")}
    try:
        yield
    finally:
        for layer, scales in kept.items():
            layer.scaling.update(scales)


def _fused(unet: Any) -> set[str]:
    """The names of the LoRAs that are fused into a UNet and not unloaded."""
    return {name for layer in unet.modules() for name in getattr(layer, "merged_adapters", ())}


def _check_unfused(unet: Any, action: str) -> None:
    """Refuse what fused layers would pass over, as they look at their own weights alone."""
    if fused := ", ".join(sorted(_fused(unet))):
        way = "call `unfuse_lora()` first, or `unload_lora_weights()`, which keeps it in the weights"
        raise ValueError(f"`{action}` has no effect while {fused} is fused; {way}.")


def _with_alphas(tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None) -> dict[str, torch.Tensor]:
    """Multiply every layer of a LoRA by its own alpha / rank; diffusers has one for all attention layers."""
    scaled = dict(tensors)
    for name in tensors:
        keys = (f"{name}.alpha", f"{name.partition('.lora.')[0]}.alpha")
        alpha = next((alphas[key] for key in keys if key in alphas), None) if alphas else None
        if alpha is not None and ".down." in name:
            up = name.replace(".down.", ".up.")
            scaled[up] = scaled[up] * (alpha / len(tensors[name]))
    return scaled


def check_lora(unet: Any, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Refuse a LoRA that was made for another network.

    Args:
        unet: The UNet.
        state_dict: The LoRA's weights by diffusers' names, such as `unet.mid_block.….to_q.lora_A.weight`.

    Raises:
        WeightsError: None of its layers is one of the UNet, or one has another size.
    """
    layers = dict(unet.named_modules())
    unknown, known = set(), set()
    for key, value in convert_unet_state_dict_to_peft(dict(state_dict)).items():
        name, _, half = key.removeprefix("unet.").partition(".lo")
        layer = layers.get(name)
        if layer is None:
            unknown.add(name)
            continue
        known.add(name)
        layer = getattr(layer, "base_layer", layer)
        found, wanted = 0, None
        if half == "ra_A.weight":
            found, wanted = value.shape[1], getattr(layer, "in_features", getattr(layer, "in_channels", None))
        elif half == "ra_B.weight":
            found, wanted = value.shape[0], getattr(layer, "out_features", getattr(layer, "out_channels", None))
        if wanted not in (None, found):
            family = _FAMILIES.get(found) if name.endswith(("attn2.to_k", "attn2.to_v")) else None
            made_for = f", which is as in {family}" if family else ""
            raise WeightsError(
                f"the LoRA does not fit this base: its layer {name} is {found} wide{made_for}, the UNet's {wanted}. "
                "Use a LoRA of this base's family."
            )
    if not known:
        first = f" (first: {min(unknown)})" if unknown else ""
        raise WeightsError(f"the LoRA has no layer of this base's UNet{first}. Use a LoRA of this base's family.")
    if unknown:
        logger.warning(
            "%d layers of the LoRA are not in this UNet and left out (first: %s).", len(unknown), min(unknown)
        )

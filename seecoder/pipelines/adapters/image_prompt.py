"""IP-Adapter beside our context: pictures that its own cross-attention layers look at.

The adapter lies in the UNet (`load_ip_adapter`, diffusers' own). A call brings either embeddings, as diffusers'
`prepare_ip_adapter_image_embeds` gives them, or pictures, where the pipeline has the adapter's image encoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import IPAdapterMixin
from safetensors import SafetensorError

from seecoder.images.gate import load_image
from seecoder.images.saving import to_pil
from seecoder.pipelines.request import Request
from seecoder.sampling.conditions import AddedConditions
from seecoder.sampling.views import Size, View
from seecoder.weights.safetensors_files import WeightsError

Embeddings = list[tuple[torch.Tensor, torch.Tensor]]  # one (negative, positive) for every adapter


class ImagePrompts(IPAdapterMixin):
    """IP-Adapters for a pipeline: diffusers' loader, safetensors only, and what makes embeddings there."""

    encode_image = StableDiffusionPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionPipeline.prepare_ip_adapter_image_embeds

    def load_ip_adapter(
        self: Any, source: Any, subfolder: Any = "", weight_name: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Load IP-Adapters into the UNet, as diffusers does.

        With `image_encoder_folder=None` no image encoder is loaded, and calls bring `ip_adapter_image_embeds`.

        Raises:
            FileNotFoundError: There is no such file, or no image encoder.
            ValueError: A pickle.
            WeightsError: It is damaged, something else, or made for another base; none is then loaded.
        """
        for name in weight_name if isinstance(weight_name, list) else [weight_name]:
            if not isinstance(source, dict) and not str(name).endswith(".safetensors"):
                raise ValueError(f"`weight_name`={name} must be a safetensors file; pickles are not read.")
        try:
            super().load_ip_adapter(source, subfolder, weight_name, *args, **kwargs)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split()).partition(". ")[0]
            if isinstance(error, OSError):
                raise FileNotFoundError(f"`weight_name`={weight_name}: {reason}.") from error
            if any(".to_k_ip" in name for name, _ in self.unet.named_parameters()):  # half of it is in already
                self.unload_ip_adapter()
            raise WeightsError(
                f"`weight_name`={weight_name} is no IP-Adapter for this base's UNet ({reason}). Use one of its family."
            ) from error

    def unload_ip_adapter(self: Any) -> None:
        """Take IP-Adapters out of the UNet, and the LoRAs that came with them (FaceID)."""
        super().unload_ip_adapter()
        if names := [name for name in getattr(self.unet, "peft_config", ()) if name.startswith("faceid_")]:
            self.delete_adapters(names)


def check_image_prompts(pipe: Any, request: Request) -> None:
    """Refuse image prompts that nothing in a pipeline reads, and an IP-Adapter without them.

    Raises:
        ValueError: They do not go together.
    """
    given = request.ip_adapter_image is not None or request.ip_adapter_image_embeds is not None
    has_adapter = pipe.unet.config.encoder_hid_dim_type == "ip_image_proj"
    if given and not has_adapter:
        raise ValueError("`ip_adapter_image` has no effect: no IP-Adapter is loaded. Call `load_ip_adapter` first.")
    if has_adapter and not given:
        raise ValueError(
            "an IP-Adapter is loaded, but there is neither `ip_adapter_image` nor `ip_adapter_image_embeds`. Give one, "
            "or call `unload_ip_adapter()`."
        )
    if has_adapter and request.ip_adapter_image_embeds is None and pipe.image_encoder is None:
        raise ValueError(
            "`ip_adapter_image` needs the adapter's image encoder. Load one (`image_encoder_folder` of "
            "`load_ip_adapter`), or give `ip_adapter_image_embeds`."
        )
    if "ip_adapter_masks" in (request.cross_attention_kwargs or {}) and request.method is not None:
        raise ValueError("`ip_adapter_masks` lie over the whole result, which a `method` cuts; use one of them.")


@torch.no_grad()
def embeddings(pipe: Any, request: Request, count: int, device: torch.device, *, guided: bool) -> Embeddings:
    """Embed the image prompts of a call.

    Args:
        pipe: The pipeline.
        request: The call, checked by `check_image_prompts`.
        count: Number of results.
        device: Where the UNet works.
        guided: Whether the network is asked for the negative ones, too, so that a tensor of embeddings holds both.

    Returns:
        For every adapter the negative and the positive embeddings, (1 or N, images, …) each; empty without adapters.

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: Another number of entries than of adapters, or of rows than of results.
    """
    if pipe.unet.config.encoder_hid_dim_type != "ip_image_proj":
        return []
    layers = pipe.unet.encoder_hid_proj.image_projection_layers
    given = request.ip_adapter_image if request.ip_adapter_image_embeds is None else request.ip_adapter_image_embeds
    entries: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(entries) != len(layers):
        raise ValueError(f"`ip_adapter_image` has {len(entries)} entries for {len(layers)} IP-Adapters; give one each.")
    if request.ip_adapter_image_embeds is None:  # the negative rows first, whatever the guidance
        pictures = [
            [to_pil(load_image(picture)) for picture in (entry if isinstance(entry, list) else [entry])]
            for entry in entries
        ]
        entries, guided = pipe.prepare_ip_adapter_image_embeds(pictures, None, device, 1, True), True
    # A tensor holds negative and positive embeddings with guidance, and else the positive ones alone.
    pairs = [
        entry.chunk(2) if guided and len(entry) % 2 == 0 else (torch.zeros_like(entry), entry) for entry in entries
    ]
    for negative, positive in pairs:
        if {len(negative), len(positive)} - {1, count}:
            raise ValueError(f"`ip_adapter_image_embeds` has {len(positive)} rows; give 1, or {count} as results.")
    found = [
        (negative.to(device, pipe.unet.dtype), positive.to(device, pipe.unet.dtype)) for negative, positive in pairs
    ]
    try:  # once without the UNet, whose first step would stop with less to say
        pipe.unet.encoder_hid_proj([positive for _, positive in found])
    except (RuntimeError, AttributeError) as error:
        shapes, kinds = [tuple(positive.shape) for _, positive in found], [type(layer).__name__ for layer in layers]
        raise ValueError(
            f"`ip_adapter_image_embeds` of shapes {shapes} do not fit {kinds} ({error}). Use the image encoder that "
            "the IP-Adapter was trained with; FaceID reads embeddings of faces, and no pictures."
        ) from error
    return found


def with_image_prompts(added: AddedConditions | None, prompts: Embeddings) -> AddedConditions | None:
    """Add image prompts to what the UNet is told besides the context."""
    if not prompts:
        return added

    def conditions(view: View, branch: Any, latent_size: Size) -> Mapping[str, Any]:
        before: Mapping[str, Any] = {} if added is None else added(view, branch, latent_size)
        embeds: Sequence[torch.Tensor] = [pair[branch == "positive"] for pair in prompts]
        return {**before, "added_cond_kwargs": {**before.get("added_cond_kwargs", {}), "image_embeds": embeds}}

    return conditions

"""Pictures from pictures with any Stable Diffusion 1.x or 2.x base."""

from diffusers.loaders import StableDiffusionLoraLoaderMixin

from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.call import called_with
from seecoder.pipelines.request import Request


class SeeCoderPipeline(ContextPipeline, StableDiffusionLoraLoaderMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Vary pictures with any SD 1.x / 2.x base; a SeeCoder takes the place of its text encoder.

        pipe = SeeCoderPipeline.from_base("folder-of-sd-1.5", encoder=SeeCoder.from_pretrained("folder-of-the-encoder"))
        images = pipe("cat.jpg", generator=torch.Generator().manual_seed(0)).images

    LoRA files load into the UNet and, where there is one, the text encoder (`load_lora_weights`, needs peft).

    Args:
        vae: The autoencoder.
        unet: The denoiser.
        scheduler: The schedule that the UNet was trained with; copied for every call.
        encoder: The SeeCoder; None if every call brings its `context`.
        controlnet: Spatial control by one ControlNet, or by several in a list; None for none.
        adapter: Spatial control by one T2I-Adapter, or by several in a list; None for none.
        image_encoder: What an IP-Adapter sees pictures with; `load_ip_adapter` brings it.
        feature_extractor: What prepares them for it.

    Raises:
        ValueError: Parts that do not fit each other.
    """

    # Saved folders name the module where a class lives; the package is the stable name.
    __module__ = "seecoder.pipelines"
    unet_family = "sd"

    __call__ = called_with(Request)

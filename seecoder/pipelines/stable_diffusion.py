"""Pictures from pictures with any Stable Diffusion 1.x or 2.x base."""

from collections.abc import Sequence

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from seecoder.pipelines.base import ContextPipeline
from seecoder.pipelines.call import called_with
from seecoder.pipelines.conditioning import encode_pictures
from seecoder.pipelines.inputs import ImageSize, Pictures
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

    def encode_context(
        self, image: Pictures, context_weights: Sequence[float] | None = None, image_size: ImageSize = "trained"
    ) -> torch.Tensor:
        """Encode pictures once, to use them often: `pipe(context=...)`, `save_context`, or any diffusers pipeline.

        Stock pipelines take the result as `prompt_embeds`, with zeros of its shape as `negative_prompt_embeds`.

        Args:
            image: One picture (path, bytes, PIL image, array or tensor); a list of pictures, each its own context; or,
                in place of a picture, an inner list or an `ImageSet` of pictures that together make one context.
            context_weights: One number >= 0 for every picture of an inner list.
            image_size: Pictures of more pixels than a square of this side are reduced to as many; None keeps them.
                "trained" is the side that the encoder was trained at.

        Returns:
            (N, T, D), one row an entry of `image`.

        Raises:
            ImageError: A picture that cannot be read.
            ValueError: Weights that do not fit.
        """
        return encode_pictures(self.encoder, image, context_weights, self._execution_device, image_size)[0]

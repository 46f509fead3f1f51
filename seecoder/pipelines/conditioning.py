"""From pictures to the contexts that the UNet is fed with."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel

from seecoder.base_model.facts import context_width, pooled_width
from seecoder.encoder.context import ImageSet, combine_contexts
from seecoder.encoder.model import SeeCoder
from seecoder.images.gate import load_image
from seecoder.images.masks import load_mask
from seecoder.images.scaling import encodable
from seecoder.pipelines.context.contexts import Contexts, pad_tokens
from seecoder.pipelines.inputs import ImageSize, Picture, Pictures, as_image_sets
from seecoder.pipelines.networks import bring_to_device, working_dtype
from seecoder.pipelines.request import Request


@torch.no_grad()
def encode_pictures(
    encoder: SeeCoder | None,
    image: Pictures,
    weights: Sequence[float] | None,
    device: torch.device | str,
    image_size: ImageSize = "trained",
    masks: Picture | Sequence[Picture | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Encode the `image` argument of a call.

    Args:
        encoder: The encoder; None is an error here.
        image: One picture (path, bytes, PIL image, array, tensor); a list of pictures, each its own context; or, in
            place of a picture, an `ImageSet` or an inner list of pictures that together make one context.
        weights: Weights of the pictures of every inner list.
        device: Where the encoder is (or will be put by its offloading hook).
        image_size: Pictures of more pixels than a square of this side are reduced to as many; None keeps them.
            "trained" is the side that the encoder was trained at.
        masks: What counts of the pictures: one mask for all, or a list with one (or None) for each entry of `image`.

    Returns:
        Contexts (N, T, D) and, if the encoder has them, pooled vectors (N, P), in the encoder's dtype.

    Raises:
        ImageError: A picture that cannot be read, or is too small.
        ValueError: No encoder, weights that do not fit, or entries whose contexts differ in length.
    """
    if encoder is None:
        raise ValueError("`image` needs an encoder, and this pipeline has none. Pass `context`, or set `pipe.encoder`.")
    sets = as_image_sets(image, weights, masks)
    side = encoder.config["image_size"] if image_size == "trained" else image_size
    # All pictures are opened before the first is encoded: a bad one should not cost the time of the others.
    pictures = [[encodable(picture, load_image(picture), side)[None] for picture in entry.images] for entry in sets]
    rows = [_encode_set(encoder, entry, pixels, device) for entry, pixels in zip(sets, pictures, strict=True)]
    lengths = {context.shape[1] for context, _ in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"the entries of `image` give contexts of different lengths {sorted(lengths)}; call once for each."
        )
    pooled = [vector for _, vector in rows if vector is not None]
    return torch.cat([context for context, _ in rows]), torch.cat(pooled) if pooled else None


def _encode_set(
    encoder: SeeCoder, entry: ImageSet, pictures: Sequence[torch.Tensor], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    bring_to_device(encoder)  # `encode` is not `forward`
    outputs = []
    # One at a time: every picture keeps its own size and aspect.
    for pixels, mask in zip(pictures, entry.masks or [None] * len(pictures), strict=True):
        counts = None if mask is None else load_mask(mask, (pixels.shape[-2], pixels.shape[-1]))[None, None].to(device)
        outputs.append(encoder.encode(pixels.to(device), mask=counts))
    context = combine_contexts([output.context for output in outputs], entry.weights, entry.combine)
    pooled = [output.pooled for output in outputs if output.pooled is not None]
    return context, combine_contexts(pooled, entry.weights) if pooled else None


def condition(
    request: Request,
    encoder: SeeCoder | None,
    unet: UNet2DConditionModel,
    device: torch.device | str,
    text: Contexts | None = None,
) -> Contexts:
    """Make the contexts of a call, one row a picture to be made.

    Unconditional is the zero context, as in the published code: the cross-attention of these UNets has no bias on keys
    and values, so zeros leave only the output's bias. An encoder may bring a learned one instead.

    Args:
        request: The call.
        encoder: The pipeline's; None will do where the call brings its `context`.
        unet: What will read the contexts; they get its dtype.
        device: Where the UNet works.
        text: The contexts of the call's text, if it has one.

    Returns:
        The contexts on the UNet's device and in its dtype.

    Raises:
        ImageError: A picture that cannot be read.
        ValueError: Neither or both of `image` and `context`, a context that does not fit the UNet, or pictures and no
            encoder.
    """
    if request.image is not None and request.context is None:
        given = (request.context_weights, device, request.image_size, request.image_mask)
        context, pooled = encode_pictures(encoder, request.image, *given)
    elif request.context is not None and request.image is None:
        context, pooled = request.context, request.pooled_context
    else:
        raise ValueError("give either `image` or `context`, and not both.")
    negative, negative_pooled = request.negative_context, request.negative_pooled_context
    tokens = {"context": context, "negative_context": negative}
    for name, values in {**tokens, "pooled_context": pooled, "negative_pooled_context": negative_pooled}.items():
        if values is None:
            continue
        rest = ("T", context_width(unet)) if name in tokens else (pooled_width(unet),)
        found = tuple(values.shape) if isinstance(values, torch.Tensor) else (type(values).__name__,)
        counts = (1, len(context)) if "negative" in name else (len(context) or 1,)
        if len(found) != 1 + len(rest) or found[-1] != rest[-1] or found[0] not in counts:
            read = str(("N", *rest)).replace("'", "")
            raise ValueError(f"`{name}` has shape {found}; this base reads {read}, N={counts[-1]}.")
        if not torch.isfinite(values).all():
            raise ValueError(f"`{name}` contains NaN or infinity; encode the picture in float32 or bfloat16.")
    context = context.to(device, working_dtype(unet))
    if negative is None and encoder is not None:
        negative = encoder.negative_context
    if negative is None:
        negative = torch.zeros_like(context)
    negative = pad_tokens(negative, context.shape[1])
    if negative.shape[1] != context.shape[1]:
        raise ValueError(f"`negative_context` has shape {tuple(negative.shape)}; `context` {tuple(context.shape)}.")
    negative = negative.to(context).expand_as(context)
    # Scales by blocks are the layers' matter.
    scale = 1.0 if isinstance(request.context_scale, str | Mapping) else request.context_scale
    if pooled is not None:
        pooled = pooled.to(context) * scale
        negative_pooled = torch.zeros_like(pooled) if negative_pooled is None else negative_pooled.to(pooled)
        negative_pooled = negative_pooled.expand_as(pooled)
    contexts = Contexts(context * scale, negative, pooled, negative_pooled)
    if text is not None:
        if len(text.context) not in (1, len(context)):
            raise ValueError(
                f"`text` has {len(text.context)} entries for {len(context)} contexts; give one, or one each."
            )
        contexts = contexts.beside(text, request.text_weight)
    return contexts.repeated(request.num_images_per_prompt)

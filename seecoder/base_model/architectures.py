"""How the networks of a checkpoint in one file are built, read off the names and shapes of their weights.

Two things are in no file, and follow the published models: attention has 8 heads in SD 1.x and heads of 64 channels in
2.x and XL, and normalisation has 32 groups. Narrower networks get as many as divide their widths.

Every function takes the shapes of a part's weights by diffusers' names, and raises `KeyError` where one is missing.
"""

import math
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def count_numbers(names: Mapping[str, Any], prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)})


def _blocks(shapes: Shapes) -> dict[str, Any]:
    """What a UNet and its ControlNets have in common."""
    levels = range(count_numbers(shapes, "down_blocks."))
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    depths = [count_numbers(shapes, f"down_blocks.{level}.attentions.0.transformer_blocks.") for level in levels]
    middle = count_numbers(shapes, "mid_block.attentions.0.transformer_blocks.")
    is_linear = any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight"))
    contexts = (shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight"))
    added = shapes.get("add_embedding.linear_1.weight")
    plain_middle = "UNetMidBlock2D" if "mid_block.resnets.0.conv1.weight" in shapes else None
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": count_numbers(shapes, "down_blocks.0.resnets."),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else plain_middle,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), middle or depths[-1] or 1],
        "cross_attention_dim": next(contexts, None),
        "attention_head_dim": [max(1, width // 64) for width in widths] if is_linear else math.gcd(8, *widths),
        "use_linear_projection": is_linear,
        "norm_num_groups": math.gcd(32, *widths),
        "addition_embed_type": "text_time" if added else None,
        "addition_time_embed_dim": 256 if added else None,
        "projection_class_embeddings_input_dim": added[1] if added else None,
    }


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Tell how a UNet of SD 1.x, 2.x or SDXL is built: arguments of `UNet2DConditionModel`."""
    config, classes = _blocks(shapes), shapes.get("class_embedding.linear_1.weight")
    if classes:
        config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": classes[1]}
    is_sdxl = config["addition_embed_type"] is not None
    # Level by level and layer by layer: distilled models (SSD-1B) are no mirror image of their downward half.
    depths = [
        [
            count_numbers(shapes, f"up_blocks.{level}.attentions.{layer}.transformer_blocks.")
            for layer in range(count_numbers(shapes, f"up_blocks.{level}.attentions."))
        ]
        for level in range(count_numbers(shapes, "up_blocks."))
    ]
    return {
        **config,
        "reverse_transformer_layers_per_block": [layers or 1 for layers in depths],
        "up_block_types": [name.replace("Down", "Up") for name in reversed(config["down_block_types"])],
        "out_channels": shapes["conv_out.weight"][0],
        "num_class_embeds": shapes.get("class_embedding.weight", (None,))[0],
        "sample_size": 128 if is_sdxl else 64,
        "upcast_attention": config["use_linear_projection"] and not is_sdxl,  # SD 2.1 overflows in float16 without
    }


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """Tell how a ControlNet is built: arguments of `ControlNetModel`."""
    embedding, blocks = "controlnet_cond_embedding.", count_numbers(shapes, "controlnet_cond_embedding.blocks.")
    first = shapes[f"{embedding}conv_in.weight"]
    wider = [shapes[f"{embedding}blocks.{block}.weight"][0] for block in range(1, blocks, 2)]
    return {
        **_blocks(shapes),
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": [first[0], *wider],
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Tell how a VAE is built: arguments of `AutoencoderKL`, but for the scaling factor."""
    levels = range(count_numbers(shapes, "encoder.down_blocks."))
    widths = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": count_numbers(shapes, "encoder.down_blocks.0.resnets."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": math.gcd(32, *widths),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "sample_size": 512,
    }

"""The pooled vector and the time ids of SDXL's UNet."""

import torch

from seecoder.base_model.added_conditions import added_conditions


def test_time_ids_are_exact_in_any_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pooled = torch.zeros(2, 4, dtype=dtype)
        added = added_conditions(pooled, (1023, 769), (5, 3), (511, 257))["added_cond_kwargs"]
        assert added["time_ids"].tolist() == [[1023, 769, 5, 3, 511, 257]] * 2
        assert added["text_embeds"] is pooled


def test_an_sdxl_unet_reads_them(build) -> None:
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 20 + 6 * 4}
    unet = build["unet"](addition_embed_type="text_time", **sizes)
    latents, context, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32), torch.randn(2, 20)

    def output(corner: tuple[int, int]) -> torch.Tensor:
        added = added_conditions(pooled, (64, 64), corner, (64, 64))
        return unet(latents, 5, encoder_hidden_states=context, **added).sample

    with torch.no_grad():
        assert torch.equal(output((0, 0)), output((0, 0)))
        assert not torch.equal(output((0, 0)), output((0, 8)))

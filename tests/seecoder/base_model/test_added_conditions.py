"""The pooled vector and the time ids of SDXL's UNet, and the guidance scale of distilled ones."""

import torch
from diffusers import LatentConsistencyModelPipeline

from seecoder.base_model.added_conditions import added_conditions, guidance_embedding


def test_time_ids_are_exact_in_any_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pooled = torch.zeros(2, 4, dtype=dtype)
        added = added_conditions(pooled, (1023, 769, 5, 3, 511, 257))["added_cond_kwargs"]
        assert added["time_ids"].tolist() == [[1023, 769, 5, 3, 511, 257]] * 2
        assert added["text_embeds"] is pooled


def test_each_picture_may_have_numbers_of_its_own() -> None:
    ids, pooled = torch.tensor([[1023, 769, 5, 3, 511, 257], [64, 64, 0, 0, 32, 32]]), torch.zeros(2, 4)
    added = added_conditions(pooled, ids)["added_cond_kwargs"]
    assert (added["time_ids"].tolist(), added["time_ids"].dtype) == (ids.tolist(), torch.float32)
    alone = added_conditions(pooled, (1023, 769, 5, 3, 511, 257))["added_cond_kwargs"]["time_ids"]
    assert torch.equal(alone[0], added["time_ids"][0])


def test_an_sdxl_unet_reads_them(build) -> None:
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 20 + 6 * 4}
    unet = build["unet"](addition_embed_type="text_time", **sizes)
    latents, context, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32), torch.randn(2, 20)

    def output(corner: tuple[int, int]) -> torch.Tensor:
        added = added_conditions(pooled, (64, 64, *corner, 64, 64))
        return unet(latents, 5, encoder_hidden_states=context, **added).sample

    with torch.no_grad():
        assert torch.equal(output((0, 0)), output((0, 0)))
        assert not torch.equal(output((0, 0)), output((0, 8)))


def test_the_guidance_scale_is_embedded_as_the_stock_pipeline_does(build) -> None:
    unet = build["unet"](time_cond_proj_dim=16)
    for scale in (1.25, 7.5):
        stock = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([scale - 1.0]), 16)
        rounded = 1000.0 * (scale - 1.0) * 2**-23  # what float32 leaves open of the largest angle
        assert torch.allclose(guidance_embedding(unet, scale), stock, rtol=0.0, atol=2 * rounded)
    assert guidance_embedding(unet.to(torch.bfloat16), 7.5).dtype == torch.bfloat16
    assert guidance_embedding(build["unet"](), 7.5) is None

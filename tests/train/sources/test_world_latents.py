import pytest
import torch
from diffusers import AutoencoderKL

from seecoder.base_model.latents import encode_posterior
from train.sources.world_data import to_model_range
from train.sources.world_latents import WorldLatents


def test_a_batch_has_the_posterior_of_its_scenes_pictures(base):
    data = WorldLatents(batch_size=2, vae=str(base / "vae"), pool_size=5, held_out=2, image_size=32, seed=4)
    data.setup("fit")
    keys = torch.tensor([[0, 3], [1, 0]])
    batch = data.batch(keys)
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    with torch.no_grad():
        mean, std = encode_posterior(vae, to_model_range(data.pixels[[3, 0]]))
    assert batch["mean"].dtype == batch["std"].dtype == torch.float16
    assert torch.allclose(batch["mean"].float(), mean, atol=2e-3)
    assert torch.allclose(batch["std"].float(), std, atol=2e-3)
    assert torch.equal(batch["scenes"]["hue"], data.scenes.hue[[3, 0]])
    assert data.held_out_mean.shape == (2, 4, 8, 8)


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`vae`="):
        WorldLatents(batch_size=2, vae=str(tmp_path))

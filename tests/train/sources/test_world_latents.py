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
    assert data.mean.shape == (5 + 2, 4, 8, 8)


def test_held_out_batches_are_of_whole_frames_or_of_windows_of_the_same(base):
    options = {"pool_size": 5, "held_out": 2, "image_size": 32, "crop_probability": 0.5}
    data = WorldLatents(batch_size=2, vae=str(base / "vae"), **options)
    data.setup("fit")
    keys = torch.tensor([[-1, 1], [-1, 0]])
    whole, crops = (data.held_out_latents(keys, torch.device("cpu"), crops) for crops in (False, True))
    assert torch.equal(whole["keys"], keys)
    assert torch.equal(whole["mean"], data.mean[[6, 5]])
    assert torch.equal(crops["mean"], data.mean[[8, 7]])
    assert torch.equal(whole["scenes"]["radius"], data.held_out_scenes.radius[[1, 0]])
    assert whole["size_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    assert bool((crops["size_ids"][:, 0] > 32).all())


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`vae`="):
        WorldLatents(batch_size=2, vae=str(tmp_path))

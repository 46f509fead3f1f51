import pytest
import torch
from diffusers import AutoencoderKL

from data.world.scenes import Scenes, sample_scenes
from seecoder.base_model.latents import encode_posterior
from train.sources.world_data import (
    WorldLatents,
    WorldPictures,
    chunks,
    draw_bytes,
    to_model_range,
    window_size_ids,
)


def test_a_batch_has_the_pictures_and_scenes_that_its_keys_name():
    data = WorldPictures(batch_size=2, pool_size=5, held_out=2, image_size=16, seed=4)
    data.setup("fit")
    keys = torch.tensor([[0, 3], [1, 0]])
    batch = data.batch(keys)
    assert torch.equal(batch["keys"], keys)
    scenes = Scenes(**batch["scenes"])
    assert torch.equal(batch["pixels"], draw_bytes(scenes, 16))
    assert torch.equal(scenes.shape, sample_scenes(5, 4).shape[[3, 0]])


def test_held_out_scenes_are_no_scenes_of_the_pool():
    data = WorldPictures(batch_size=2, pool_size=4, held_out=4, image_size=16)
    data.setup("fit")
    assert not set(data.held_out_scenes.center_x.tolist()) & set(data.scenes.center_x[:4].tolist())


@pytest.mark.parametrize("name", ["pool_size", "held_out", "batch_size"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}`=0"):
        WorldPictures(**{"batch_size": 2, name: 0})


def test_a_share_of_the_pool_are_windows_and_the_held_out_pictures_are_whole():
    data = WorldPictures(batch_size=2, pool_size=200, held_out=6, image_size=16, crop_probability=0.25)
    data.setup("fit")
    scenes = sample_scenes(200, 0)
    pool = data.pixels[:200]
    is_crop = data.scenes.radius[:200] != scenes.radius
    assert 30 <= int(is_crop.sum()) <= 70
    assert torch.equal(pool[~is_crop], draw_bytes(scenes, 16)[~is_crop])
    assert bool((pool[is_crop] != draw_bytes(scenes, 16)[is_crop]).flatten(1).any(1).all())
    assert torch.equal(data.held_out_pixels, draw_bytes(data.held_out_scenes, 16))
    crops = slice(206, 212)
    assert bool((data.scenes.radius[crops] > data.held_out_scenes.radius).all())
    assert torch.equal(data.frames.radius[crops], data.held_out_scenes.radius)
    assert torch.equal(data.pixels[crops], draw_bytes(data.held_out_scenes, 16, data.windows[crops]))


def test_windows_have_the_sizes_that_sdxl_is_told():
    windows = torch.tensor([[0.0, 0.0, 1.0], [0.25, 0.5, 0.5], [0.5, 0.25, 0.25]])
    expected = [[64, 64, 0, 0, 64, 64], [128, 128, 32, 64, 64, 64], [256, 256, 128, 64, 64, 64]]
    assert window_size_ids(windows, 64).tolist() == expected


def test_without_crops_all_are_whole():
    data = WorldPictures(batch_size=2, pool_size=5, held_out=2, image_size=16)
    data.setup("fit")
    assert torch.equal(data.scenes.radius[:5], sample_scenes(5, 0).radius)
    assert len(data.pixels) == 5 + 2
    with pytest.raises(ValueError, match="`crop_probability`=1"):
        WorldPictures(batch_size=2, crop_probability=1.5)


def test_drawing_in_parts_is_drawing_at_once(monkeypatch):
    scenes = sample_scenes(5, 0)
    windows = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    whole = [draw_bytes(scenes, 8), draw_bytes(scenes, 8, windows)]
    monkeypatch.setattr("train.sources.world_data.chunks", lambda count, size: [slice(0, 2), slice(2, 5)])
    assert torch.equal(draw_bytes(scenes, 8), whole[0])
    assert torch.equal(draw_bytes(scenes, 8, windows), whole[1])


def test_bytes_become_the_range_of_autoencoders():
    assert to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_chunks_cover_all_once():
    assert [list(range(7))[part] for part in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert chunks(0, 3) == []


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

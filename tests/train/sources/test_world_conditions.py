import pytest
import torch
from diffusers import AutoencoderKL

from data.world.render import segment
from data.world.scenes import sample_scenes
from seecoder.base_model.latents import encode_posterior
from train.sources.world_conditions import WorldConditions, bounding_boxes, holes
from train.sources.world_data import to_model_range

EVERYTHING = ("labels", "caption", "masked", "low_resolution", "semantic_map")


@pytest.fixture
def data(base):
    made = WorldConditions(
        2, str(base / "vae"), EVERYTHING, pool_size=6, held_out=3, image_size=32, seed=4, crop_probability=0.5
    )
    made.setup("fit")
    return made


def test_a_batch_is_told_what_its_pictures_show(data):
    keys = torch.tensor([[0, 3], [1, 0]])
    batch, frames = data.batch(keys), data.frames[[3, 0]]
    fractions = segment(frames, 32, data.windows[[3, 0]])
    assert batch["labels"][0] in (-1, frames.shape[0] * 8 + frames.hue[0])
    assert torch.equal(batch["boxes"][:, 0], bounding_boxes(fractions[:, 2] > 0.5))
    named = frames.describe(0)
    assert batch["caption"][0] == f"a {named['texture']} {named['hue']} {named['shape']} on {named['background']}"
    assert torch.equal(batch["pixels"], data.pixels[[3, 0]])
    small = batch["pixels"].float().unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).round() / 127.5 - 1
    torch.testing.assert_close(batch["low_resolution"], small)
    assert batch["semantic_map"].shape == (2, 8, 32, 32)
    torch.testing.assert_close(batch["semantic_map"].sum(1), torch.ones(2, 32, 32))
    torch.testing.assert_close(batch["semantic_map"][0, 2 + frames.shape[0]], fractions[0, 2])


def test_a_hole_is_grey_and_its_mask_lies_above_the_latents_as_in_inpainting_models(data, base):
    batch = data.batch(torch.tensor([[0, 3], [1, 0]]))
    hole = batch["hole"]
    assert hole.unique().tolist() == [0, 1]
    assert torch.equal(batch["masked"][:, 0], hole[:, 0, ::4, ::4])
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    latents = encode_posterior(vae, to_model_range(batch["pixels"]) * (1 - hole))[0]
    torch.testing.assert_close(batch["masked"][:, 1:], latents)


def test_holes_belong_to_seed_epoch_and_sample(data):
    keys = torch.tensor([[0, 3], [1, 3], [0, 1]])
    first, second, _ = data.batch(keys)["hole"]
    assert torch.equal(data.batch(keys.flip(0))["hole"][2], first)
    assert not torch.equal(first, second)


def test_held_out_samples_have_the_same_columns(data):
    keys = torch.tensor([[-1, 0], [-1, 2]])
    batch = data.held_out_latents(keys, torch.device("cpu"))
    assert set(batch) == set(data.batch(torch.tensor([[0, 0]])))
    assert torch.equal(batch["keys"], keys)
    assert torch.equal(batch["pixels"], data.held_out_pixels[[0, 2]])
    crops = data.held_out_latents(keys, torch.device("cpu"), crops=True)
    assert torch.equal(crops["pixels"], data.pixels[6 + 3 :][[0, 2]])
    assert not torch.equal(crops["boxes"], batch["boxes"])


def test_boxes_go_around_what_is_covered():
    covered = torch.zeros(2, 4, 8, dtype=torch.bool)
    covered[0, 1:3, 5] = True
    assert bounding_boxes(covered).tolist() == [[0.25, 0.625, 0.75, 0.75], [0, 0, 0, 0]]


def test_half_of_the_holes_hide_the_object_and_all_are_holes():
    scenes = sample_scenes(200, 0)
    covered = segment(scenes, 64)[:, 2]
    boxes = bounding_boxes(covered > 0.5)
    draws = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    hole = holes(boxes, draws, 64)
    hides = (covered.unsqueeze(1) <= hole).flatten(1).all(1)
    assert bool(hides[draws[:, 4] < 0.5].all())
    assert float(hides[draws[:, 4] >= 0.5].float().mean()) < 0.5
    assert float(hole.mean((1, 2, 3)).min()) > 0.05
    assert float(hole.mean((1, 2, 3)).max()) < 0.85
    nothing = holes(torch.zeros(200, 4), draws, 64)
    assert torch.equal(nothing[draws[:, 4] >= 0.5], hole[draws[:, 4] >= 0.5])
    assert bool((nothing.sum((1, 2, 3)) > 0).all())

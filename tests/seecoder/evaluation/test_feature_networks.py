"""Networks from paths, and what is measured through them."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from data.world.pretrained import BASE
from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.evaluation.feature_networks import open_network
from seecoder.weights.safetensors_files import WeightsError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
PICTURE = torch.rand(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SIZES, intermediate_size=16, projection_dim=6)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@torch.no_grad()
def test_clip_gives_its_projected_embedding_of_what_its_processor_makes(clip):
    network = open_network(clip)
    pixels = CLIPImageProcessor.from_pretrained(clip)((255 * PICTURE[0]).round().byte(), return_tensors="pt")
    expected = CLIPVisionModelWithProjection.from_pretrained(clip)(**pixels).image_embeds
    assert (network.similarity, network.maps, network.distance) == ("clip_i", None, None)
    torch.testing.assert_close(network.embed(PICTURE), expected)
    assert expected.shape == (1, 6)


@torch.no_grad()
def test_dino_gives_its_class_token(tmp_path):
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    network = open_network(tmp_path)
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)((255 * PICTURE[0]).round().byte(), return_tensors="pt")
    assert network.similarity == "dino_i"
    torch.testing.assert_close(network.embed(PICTURE), model(**pixels).last_hidden_state[:, 0])


def test_weights_that_are_missing_are_not_made_up(clip):
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(WeightsError, match="has no weights for"):
        open_network(clip)


@torch.no_grad()
def test_the_worlds_backbone_tells_scenes_apart():
    network = open_network(BASE / "backbone")
    assert (network.similarity, network.distance_name) == ("similarity", "map_distance")
    assert (Path.cwd() / network.name).resolve() == (BASE / "backbone").resolve()
    pictures = render(sample_scenes(2, 0), 64)
    small = render(sample_scenes(2, 0), 128)
    one, other, again = (network.embed(picture[None]) for picture in (*pictures, small[0]))
    assert one.shape == (1, 128)
    assert cosine_similarity(one, again) > 0.95 > cosine_similarity(one, other)
    assert network.distance(pictures, pictures).tolist() == [0, 0]
    assert (network.distance(pictures, pictures.flip(0)) > 0.1).all()


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no network; give the folder"):
        open_network(tmp_path)

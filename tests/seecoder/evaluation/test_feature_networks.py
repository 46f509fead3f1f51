"""Networks from paths, and what is measured through them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, interpolate
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from data.world.conditioner import BASE
from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.evaluation.feature_networks import intra_scores, map_network, open_network
from seecoder.lpips import LPIPS
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
    with pytest.raises(FileNotFoundError, match=r"has no config\.json of a network; give"):
        open_network(tmp_path)


def test_intra_scores_are_means_over_pairs_of_windows():
    # Windows of one level each; one map, the picture itself: distances and Gram matrices are computed by hand.
    network = map_network("own", lambda pixels: [pixels], 8)
    levels = torch.tensor([0.1, 0.2, 0.5]).repeat_interleave(8).expand(1, 3, 8, 24)
    found = intra_scores(levels, network)
    assert found["intra_map_distance"] == pytest.approx(0, abs=1e-10)  # the same direction of colour everywhere
    grams = [level**2 / 3 for level in (0.1, 0.2, 0.5)]  # sum over 64 places by 3 * 64 entries
    differences = [(grams[i] - grams[j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["intra_style"] == pytest.approx(sum(differences) / 3, rel=1e-4)
    assert intra_scores(levels.transpose(2, 3), network)["intra_style"] == pytest.approx(found["intra_style"])
    assert intra_scores(levels[..., :15], network) == {}


@torch.no_grad()
def test_lpips_gives_its_distance_and_its_trunk(tmp_path):
    torch.manual_seed(0)
    module = LPIPS("alex")
    for weight in module.parameters():
        weight.normal_(std=0.1).abs_()
    save_file(module.state_dict(), tmp_path / "alex.safetensors", {"network": "alex"})
    network = open_network(tmp_path / "alex.safetensors")
    turned = PICTURE.flip(3)
    assert network.distance_name == "lpips"
    torch.testing.assert_close(network.distance(PICTURE, turned), module(2 * PICTURE - 1, 2 * turned - 1))
    square = interpolate(PICTURE, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(network.embed(PICTURE), module.maps(2 * square - 1)[-1].mean((2, 3)))
    wide = torch.cat([PICTURE, turned], 3)
    assert set(intra_scores(wide, network)) == {"intra_lpips", "intra_style"}

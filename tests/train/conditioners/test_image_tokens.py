import pytest
import torch

from seecoder import SeeCoder
from tests.fixtures.encoders import make_encoder, make_pixels
from train.conditioners.image_tokens import ImageTokens

KEEP = torch.tensor([True, False])


@pytest.fixture
def folder(tmp_path):
    make_encoder().save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def batch():
    return {"pixels": (make_pixels(2) * 255).byte()}


def test_tokens_are_the_context_that_pipelines_see_and_zeros_are_none(folder, batch):
    encoder = SeeCoder.from_pretrained(folder)
    tokens = ImageTokens(encoder.config["context_dim"], folder)(batch, KEEP)
    with torch.no_grad():
        assert torch.equal(tokens[0], encoder(batch["pixels"][:1].float() / 255)[0])
    assert not tokens[1].any()


@pytest.mark.parametrize(("train_encoder", "frozen"), [(False, "encoder"), (True, "encoder.backbone")])
def test_it_is_frozen_or_all_but_its_backbone_is_trained(folder, batch, train_encoder, frozen):
    width = SeeCoder.from_pretrained(folder).config["context_dim"]
    part = ImageTokens(width, folder, train_encoder).train()
    assert part.frozen_names == (frozen,)
    assert part.encoder.query_transformer.training == train_encoder
    assert not part.encoder.backbone.training


def test_it_is_exported_as_an_encoder_and_its_place_in_a_pipeline(folder, tmp_path):
    part = ImageTokens(SeeCoder.from_pretrained(folder).config["context_dim"], folder)
    assert part.export(tmp_path) == {"_class_name": "SeeCoderPipeline", "encoder": ["seecoder.encoder", "SeeCoder"]}
    saved, own = SeeCoder.from_pretrained(tmp_path / "encoder").state_dict(), part.encoder.state_dict()
    for name, value in saved.items():
        torch.testing.assert_close(value, own[name], rtol=1e-3, atol=1e-3)


def test_an_encoder_of_another_width_is_refused(folder):
    with pytest.raises(ValueError, match="`context_dim`=7 must be"):
        ImageTokens(7, folder)

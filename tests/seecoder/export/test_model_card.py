"""The card's header is YAML that the Hub reads, and its table says what the encoder is."""

import pytest
from huggingface_hub import ModelCard

from seecoder.export.model_card import CardFacts, model_card


@pytest.mark.parametrize("license", ["mit", 'odd: "one"\nevil: yes', "no", "1.0"])
def test_the_header_is_read_back_as_it_was_given(build, license):
    card = ModelCard(model_card(build["encoder"](), "hub", CardFacts(license=license, base_model="a/b"), (1, 1)))
    assert card.data.license == " ".join(license.split())
    assert card.data.base_model == "a/b"
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.tags == ["seecoder", "image-variation", "prompt-free-diffusion", "stable-diffusion"]
    assert "evil" not in card.data.to_dict()


def test_no_login_and_no_token_of_an_address_gets_into_the_card(build):
    facts = CardFacts(base_model="https://me:secret@host/model?token=secret")
    card = ModelCard(model_card(build["encoder"](), "hub", facts, (1, 1)))
    assert card.data.base_model == "host/model"
    assert "secret" not in str(card)


def test_the_table_says_what_the_encoder_is(build):
    encoder = build["encoder"](position_aware=True, image_size=640, guidance_scale=1.5)
    card = model_card(encoder, "hub", CardFacts(notes={"a": "b | c\nd"}), (1, 1))
    assert "base_model" not in card
    assert "| position-aware | yes |" in card
    assert f"| parameters | {sum(parameter.numel() for parameter in encoder.parameters()):,} |" in card
    assert "| trained at | 640 pixels; guidance 1.5 suits it |" in card
    assert "| a | b \\| c d |" in card


def test_the_example_names_the_pipeline_of_the_family_or_the_graph(build):
    assert "SeeCoderPipeline.from_base" in model_card(build["encoder"](), "hub", CardFacts(), (1, 1))
    assert "SeeCoderXLPipeline.from_base" in model_card(build["encoder"](pooled_dim=4), "hub", CardFacts(), (1, 1))
    assert "(1, 3, 40, 72) float32" in model_card(build["encoder"](), "onnx", CardFacts(), (40, 72))

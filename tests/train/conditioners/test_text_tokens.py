from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPTextModel

from data.world.scenes import ATTRIBUTES
from train.conditioners.text_tokens import TextTokens

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def base_with_text(text_parts, tmp_path):
    for name, part in text_parts.items():
        part.save_pretrained(tmp_path / "base" / name)
    return tmp_path / "base"


def test_tokens_are_those_of_stable_diffusion(base_with_text, text_parts):
    part = TextTokens(32, str(base_with_text))
    tokens = part({"caption": ["ab", "c"]}, torch.tensor([True, False]))
    found = text_parts["tokenizer"](["ab", ""], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(tokens, text_parts["text_encoder"](found.input_ids)[0])
    assert not any(weight.requires_grad for weight in part.parameters())
    assert not part.train().text_encoder.training


def test_an_encoder_from_scratch_needs_no_weights_and_is_trained(base_with_text, tmp_path):
    (base_with_text / "text_encoder" / "model.safetensors").unlink()
    part = TextTokens(32, str(base_with_text), from_scratch=True).train()
    assert part.text_encoder.training
    part({"caption": ["ab"]}, torch.tensor([True])).sum().backward()
    assert part.text_encoder.get_input_embeddings().weight.grad.any()
    assert part.export(tmp_path / "out") == {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", type(part.tokenizer).__name__],
    }
    assert CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").config.hidden_size == 32


def test_other_encoders_than_clip_are_read_of_one_folder(text_parts, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=54, max_position_embeddings=12, **sizes)).save_pretrained(tmp_path)
    text_parts["tokenizer"].save_pretrained(tmp_path)
    assert TextTokens(16, str(tmp_path))({"caption": ["ab"]}, torch.tensor([True])).shape == (1, 12, 16)


def test_an_encoder_of_another_width_is_refused(base_with_text):
    with pytest.raises(ValueError, match="`context_dim`=16 must be 32"):
        TextTokens(16, str(base_with_text))


def test_the_words_of_the_world_are_all_known():
    part = TextTokens(128, str(ROOT / "data/world/text"), from_scratch=True)
    words = ["a", "on", *(name for names in ATTRIBUTES.values() for name in names)]
    assert part.tokenizer.unk_token_id not in part.tokenizer(" ".join(words), add_special_tokens=False).input_ids

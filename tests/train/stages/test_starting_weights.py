from functools import partial

import pytest
import torch

from data.world.pretrained import BASE
from data.world.scenes import sample_scenes
from seecoder.base_model.added_conditions import size_conditions
from seecoder.weights.safetensors_files import WeightsError
from train.conditioners.channels import Channels
from train.conditioners.label_tokens import LabelTokens
from train.settings import OptimizerSettings
from train.stages.diffusion import WorldDiffusionStage
from train.stages.starting_weights import load_widened

HOLE = partial(Channels, columns={"masked": 5})
CLASS = partial(LabelTokens, num_labels=48)


def stage(**changes) -> WorldDiffusionStage:
    return WorldDiffusionStage(OptimizerSettings(), vae=str(BASE / "vae"), **{"lowest_octave": -2, **changes})


def test_the_first_step_of_a_wider_base_is_exactly_the_narrower_one():
    wide, narrow = stage(conditioners=[HOLE], init_from=str(BASE)), stage(init_from=str(BASE))
    assert wide.unet.config["in_channels"] == 9
    assert not wide.unet.conv_in.weight[:, 4:].any()
    noisy, context = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 128)
    with torch.no_grad():
        below = torch.cat([noisy, torch.randn(1, 5, 16, 16)], dim=1)
        one, other = (
            part.unet(x, 500, encoder_hidden_states=context).sample for part, x in ((wide, below), (narrow, noisy))
        )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(wide.conditioner.norm.weight, narrow.conditioner.norm.weight)


def test_new_conditioners_keep_their_weights_and_missing_ones_are_left_out():
    fresh, begun = (stage(conditioners=[CLASS], tells_scene=False, init_from=source) for source in (None, str(BASE)))
    assert begun.conditioner is None
    assert torch.equal(begun.conditioners[0].labels.weight, fresh.conditioners[0].labels.weight)
    assert not torch.equal(begun.unet.conv_out.weight, fresh.unet.conv_out.weight)


@pytest.mark.heavy
def test_a_run_may_start_from_a_run_with_fewer_channels(tmp_path):
    narrow = stage(init_from=str(BASE))
    torch.save({"state_dict": narrow.state_dict()}, tmp_path / "narrow.ckpt")
    wide = stage(conditioners=[HOLE, CLASS])
    load_widened(wide, tmp_path / "narrow.ckpt")
    assert torch.equal(wide.unet.conv_in.weight[:, :4], narrow.unet.conv_in.weight)
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "wide.ckpt")
    again = stage(conditioners=[HOLE, CLASS])
    load_widened(again, tmp_path / "wide.ckpt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in wide.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context_dim": 64}, "do not fit"),
        ({"block_out_channels": (64, 96, 160)}, "do not fit"),
    ],
)
def test_nothing_else_may_differ(changes, said):
    with pytest.raises(WeightsError, match=said):
        stage(init_from=str(BASE), **changes)


def test_lower_octaves_and_sdxls_sizes_change_nothing_at_first(tmp_path):
    scenes, noisy = sample_scenes(2, seed=0), torch.randn(2, 4, 16, 16)
    source = stage(lowest_octave=-1)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "source.ckpt")
    wide = stage(lowest_octave=-3, pooled_dim=64)
    load_widened(wide, tmp_path / "source.ckpt")
    with torch.no_grad():
        context, given = wide.conditioner(scenes), source.conditioner(scenes)
        torch.testing.assert_close(context, given)
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64], [128.0, 128, 32, 8, 64, 64]])
        extra = size_conditions(wide.conditioner.pool(context), sizes)
        one = wide.unet(noisy, 500, encoder_hidden_states=context, **extra).sample
        torch.testing.assert_close(one, source.unet(noisy, 500, encoder_hidden_states=given).sample)
    assert wide.unet.add_embedding.linear_1.weight.any()  # else nothing of it would ever be learned
    narrower = stage(lowest_octave=0)
    with pytest.raises(WeightsError, match="layout"):
        load_widened(narrower, tmp_path / "source.ckpt")


def test_a_narrower_base_than_its_source_is_refused(tmp_path):
    torch.save({"state_dict": stage(conditioners=[HOLE]).state_dict()}, tmp_path / "wide.ckpt")
    with pytest.raises(WeightsError, match="conv_in"):
        load_widened(stage(), tmp_path / "wide.ckpt")

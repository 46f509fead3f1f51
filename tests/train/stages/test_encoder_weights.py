from functools import partial

import pytest
import torch

from data.world.conditioner import BASE
from data.world.scenes import sample_scenes
from seecoder.base_model.added_conditions import added_conditions
from seecoder.checks import require
from seecoder.export.trained_part import read_trained
from seecoder.weights.safetensors_files import WeightsError
from train.conditioners.channels import Channels
from train.conditioners.label_tokens import LabelTokens
from train.settings import OptimizerSettings
from train.stages.diffusion import WorldDiffusionStage
from train.stages.encoder_weights import ENCODER_SIZE, load_trained, load_widened, seeded_encoder


@pytest.mark.heavy
def test_a_new_stage_starts_from_weights_with_a_fresh_optimizer(settings, fit, load, stage, tmp_path):
    assert fit(settings(**{"run.max_steps": 2})) == 0
    run = tmp_path / "run"
    aware = stage(encoder={"position_aware": True}, init_from=str(run))
    trained = read_trained(run)
    state = aware.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.ema.items())
    changes = {"run.folder": str(tmp_path / "aware"), "run.max_steps": 1, "stage.init_args.init_from": str(run)}
    assert fit(settings(**changes, **{"stage.init_args.encoder.position_aware": True})) == 0
    checkpoint = load(tmp_path / "aware" / "step-00000001.ckpt")
    moments = checkpoint["optimizer_states"][0]["state"]
    assert {int(state["step"]) for state in moments.values()} == {1}


@pytest.mark.heavy
def test_weights_of_other_sizes_are_refused(stage, settings, fit, tmp_path, capsys):
    assert fit(settings(**{"run.max_steps": 1})) == 0
    changes = {"stage.init_args.init_from": str(tmp_path / "run"), "stage.init_args.encoder.query_ffn_dim": 64}
    assert fit(settings(**changes, **{"run.folder": str(tmp_path / "other")})) == 2
    assert "does not fit" in capsys.readouterr().err
    encoder = stage(encoder={"query_layers": 4}).encoder
    with pytest.raises(RuntimeError, match="does not fit"):
        load_trained(encoder, str(tmp_path / "run"))


SIZES = {
    "backbone": "resnet10t",
    "backbone_args": {"out_indices": [1, 2, 3], "channels": [8, 8, 8, 8], "stem_width": 8},
    "context_dim": 32,
    "num_heads": 2,
    "decoder_layers": 1,
    "decoder_ffn_dim": 16,
    "query_layers": 3,
    "query_ffn_dim": 16,
    "num_global_queries": 1,
    "num_local_queries": 3,
}


def test_initial_weights_follow_from_the_seed_alone():
    states = []
    for state_before, seed in ((0, 7), (1, 7), (1, 8)):
        torch.manual_seed(state_before)
        states.append(seeded_encoder(SIZES, seed).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_positions_count_by_their_gain_and_need_a_position_aware_encoder():
    silent, loud = (seeded_encoder({**SIZES, "position_aware": True}, 0, gain) for gain in (0.0, 1.0))
    assert float(silent.query_transformer.position_encoding.mlp[-1].weight.detach().abs().max()) == 0
    assert float(loud.query_transformer.position_encoding.mlp[-1].weight.detach().abs().max()) > 0
    with pytest.raises(ValueError, match="`position_gain`=1"):
        seeded_encoder(SIZES, 0, 1.0)


def test_an_unknown_argument_of_the_encoder_is_named():
    with pytest.raises(ValueError, match=r"`encoder`: .*no_such"):
        seeded_encoder({**SIZES, "no_such": 1}, 0)


def test_pictures_that_are_too_small_for_the_backbone_are_refused():
    assert ENCODER_SIZE.accepts(None)
    assert ENCODER_SIZE.accepts(32)
    with pytest.raises(ValueError, match="`encoder_size`=31 must be a whole number from 32 up"):
        require("encoder_size", 31, ENCODER_SIZE)


def test_an_encoder_for_sdxl_starts_from_one_without_a_pooled_vector(tmp_path):
    plain, fresh = seeded_encoder(SIZES, seed=1), seeded_encoder({**SIZES, "pooled_dim": 8}, seed=2)
    plain.save_pretrained(tmp_path)
    before = fresh.pooled_projection.weight.clone()
    load_trained(fresh, str(tmp_path))
    state = fresh.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert torch.equal(fresh.pooled_projection.weight, before)
    fresh.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="unexpected"):
        load_trained(plain, str(tmp_path))


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
        extra = added_conditions(wide.conditioner.pool(context), sizes)
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

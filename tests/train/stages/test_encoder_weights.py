import pytest
import torch

from seecoder.checks import require
from seecoder.export.trained_part import read_trained
from train.stages.encoder_weights import ENCODER_SIZE, load_trained, seeded_encoder


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

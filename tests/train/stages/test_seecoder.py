import hashlib

import pytest
import torch

from seecoder import SeeCoder
from seecoder.export.trained_part import read_trained
from tests.fixtures.training import batch_of
from train.settings import EmaSettings
from train.stages.stage import Stage


def digest(module) -> str:
    total = hashlib.sha256()
    for name, value in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        total.update(name.encode() + value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def frozen_digests(stage) -> list[str]:
    schedule = hashlib.sha256(stage.schedule.alphas_cumprod.numpy().tobytes()).hexdigest()
    return [schedule, *(digest(module) for module in (stage.vae, stage.unet, stage.encoder.backbone))]


def step(stage, optimizer, batch) -> float:
    optimizer.zero_grad()
    loss = stage.loss(batch)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_frozen_parts_never_change(stage):
    trained = stage(ema=EmaSettings())
    before = frozen_digests(trained)
    optimizer = trained.configure_optimizers()
    Stage.on_fit_start(trained)  # without what the encoder records, which a trainer's data tell
    trained.train()
    for _ in range(3):
        step(trained, optimizer, batch_of())
        trained.ema.update()
    with trained.evaluating():
        trained.loss(batch_of())
    trained.eval()
    trained.train()
    assert frozen_digests(trained) == before
    assert all(weight.grad is None for part in (trained.vae, trained.unet) for weight in part.parameters())
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in trained.encoder.trainable_parameters()}


def test_frozen_parts_stay_in_eval_mode(stage):
    trained = stage().train()
    assert trained.encoder.training
    for part in (trained.vae, trained.unet, trained.encoder.backbone):
        assert not any(module.training for module in part.modules())
    pixels = torch.rand(2, 3, 32, 32)
    evaluated = trained.eval().encoder.backbone(pixels)
    trained.train()
    assert all(map(torch.equal, evaluated, trained.encoder.backbone(pixels)))


@pytest.mark.parametrize("attention", ["spatial", "released"])
def test_gradients_reach_exactly_the_trained_weights(stage, attention):
    trained = stage(encoder={"decoder_attention": attention, "decoder_dropout": 0.0}).train()
    optimizer = trained.configure_optimizers()
    for _ in range(2):
        step(trained, optimizer, batch_of())
    trained.zero_grad()
    trained.loss(batch_of()).backward()
    names = {name for name, _ in trained.encoder.trainable_named_parameters()}
    silent = []
    for name, weight in trained.encoder.named_parameters():
        if name in names:
            assert weight.grad is not None, name
            if float(weight.grad.abs().max()) == 0:
                silent.append(name)
        else:
            assert weight.grad is None, name
    assert silent == []
    idle = {name for name, _ in trained.encoder.named_parameters() if not name.startswith("backbone.")} - names
    assert bool(idle) == (attention == "released")


def test_position_encoding_starts_at_zero_and_then_learns(stage):
    plain, aware = stage(), stage(encoder={"position_aware": True})
    pixels = torch.rand(2, 3, 32, 32)
    load_trained_like(aware, plain)
    assert torch.equal(plain.encoder.eval()(pixels), aware.encoder.eval()(pixels))
    aware.train()
    aware.loss(batch_of()).backward()
    encoding = {
        name: float(weight.grad.abs().max())
        for name, weight in aware.encoder.named_parameters()
        if "position_encoding" in name
    }
    assert encoding
    moving = [name for name, size in encoding.items() if size > 0]
    assert moving  # the last layer
    assert len(moving) < len(encoding)  # what lies before a last layer of zeros gets no gradient at step 0
    optimizer = aware.configure_optimizers()
    for _ in range(2):
        step(aware, optimizer, batch_of())
    aware.zero_grad()
    aware.loss(batch_of()).backward()
    later = [weight.grad for name, weight in aware.encoder.named_parameters() if "position_encoding" in name]
    assert all(float(gradient.abs().max()) > 0 for gradient in later)


def test_positions_can_count_from_the_first_step(stage):
    still, moving = stage(encoder={"position_aware": True}), stage(encoder={"position_aware": True}, position_gain=6.0)
    again = stage(encoder={"position_aware": True}, position_gain=6.0)
    for (name, one), (_, other) in zip(
        still.encoder.named_parameters(), moving.encoder.named_parameters(), strict=True
    ):
        assert torch.equal(one, other) == ("position_encoding.mlp.4.weight" not in name)
    pixels = torch.rand(2, 3, 32, 32)
    assert not torch.equal(still.encoder.eval()(pixels), moving.encoder.eval()(pixels))
    assert torch.equal(again.encoder.eval()(pixels), moving.encoder(pixels))
    for changes in ({"position_gain": 6.0}, {"encoder": {"position_aware": True}, "position_gain": -1.0}):
        with pytest.raises(ValueError, match="`position_gain`="):
            stage(**changes)


def load_trained_like(aware, plain) -> None:
    state = aware.encoder.state_dict()
    aware.encoder.load_state_dict({**state, **plain.encoder.state_dict()})


def test_context_gradient_equals_finite_differences(stage):
    trained = stage()
    batch = batch_of(2)
    keys = batch["keys"]
    for part in (trained.unet, trained.vae):
        part.double()
    context = torch.randn(2, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    moments = trained.moments(batch)
    batch |= {"latent_mean": moments[0], "latent_std": moments[1]}

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        mean, std = trained.moments(batch)
        return unet_loss(trained, mean, std, keys, tokens)

    (gradient,) = torch.autograd.grad(loss(context), context)
    direction = torch.randn(context.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    width = 1e-5
    with torch.no_grad():
        slope = (loss(context + width * direction) - loss(context - width * direction)) / (2 * width)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)
    assert float(gradient.abs().max()) > 0


def unet_loss(trained, mean, std, keys, tokens):
    """The stage's loss without its rounding of outputs to float32."""
    from train.stages.noise import normal

    noise = normal(0, "noise", keys, mean.shape[1:]).double()
    times = trained.uniform_timesteps(keys)
    noisy = trained.schedule.add_noise(mean, noise, times).double()
    return (trained.unet(noisy, times, encoder_hidden_states=tokens).sample - noise).square().mean()


def test_loss_is_a_function_of_sample_seeds_alone(stage):
    trained = stage(encoder={"decoder_dropout": 0.0}).train()
    batch = batch_of(4)
    whole = trained.loss(batch).detach()
    torch.manual_seed(99)
    assert torch.equal(trained.loss(batch_of(4)), whole)
    parts = [{"pixels": batch["pixels"][part], "keys": batch["keys"][part]} for part in (slice(0, 1), slice(1, 4))]
    shared = (trained.loss(parts[0]) + 3 * trained.loss(parts[1])).detach() / 4
    assert float(shared) == pytest.approx(float(whole), rel=1e-5)
    other = {"pixels": batch["pixels"], "keys": batch["keys"] + torch.tensor([1, 0])}
    assert float(trained.loss(other).detach()) != float(whole)


def test_cached_moments_give_the_loss_of_the_online_autoencoder(stage):
    trained = stage(encoder={"decoder_dropout": 0.0})
    batch = batch_of()
    trained.requires_grad_(False)
    online = trained.loss(batch)
    mean, std = trained.moments(batch)
    assert torch.equal(trained.loss({**batch, "latent_mean": mean, "latent_std": std}), online)
    half = trained.loss({**batch, "latent_mean": mean.half(), "latent_std": std.half()})
    assert float(half) == pytest.approx(float(online), rel=1e-3)


def test_activation_checkpointing_changes_nothing(stage):
    gradients = []
    for parts in ((), ("encoder", "unet")):
        trained = stage(gradient_checkpointing=parts).train()
        torch.manual_seed(3)
        loss = trained.loss(batch_of())
        loss.backward()
        gradients.append([loss.detach(), *(weight.grad for _, weight in trained.trained_parameters())])
    assert all(torch.allclose(plain, again, rtol=1e-4, atol=1e-7) for plain, again in zip(*gradients, strict=True))


def test_velocity_bases_are_trained_with_velocity(stage, velocity_base, base):
    errors = []
    for folder in (base, velocity_base):
        trained = stage(base=str(folder))
        assert trained.schedule.prediction == ("v_prediction" if folder == velocity_base else "epsilon")
        errors.append(float(trained.loss(batch_of()).detach()))
    assert errors[0] != errors[1]


def test_context_dropout_zeroes_whole_contexts(stage, monkeypatch):
    trained = stage(context_dropout=0.5)
    seen = []
    original = trained.errors
    monkeypatch.setattr(
        trained,
        "errors",
        lambda batch, keys, times, context, pooled: (
            seen.append(context.detach()),
            original(batch, keys, times, context, pooled),
        )[1],
    )
    trained.loss(batch_of(16))
    dropped = (seen[0].flatten(1) == 0).all(1)
    assert 0 < int(dropped.sum()) < 16
    assert not bool((seen[0][~dropped] == 0).all(1).any())


def test_drawing_timesteps_by_their_weights_is_the_same_loss_on_average_with_less_noise(stage):
    settings = {"encoder": {"decoder_dropout": 0.0}, "min_snr_gamma": 0.2}
    keys = torch.stack([torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000)], dim=1)
    losses = []
    for sampling in ("uniform", "weighted"):
        trained = stage(timestep_sampling=sampling, **settings)
        times, weights = trained.draw_timesteps(keys)
        losses.append((1 + times / 1000) * weights)  # any error that varies little between timesteps
    uniform_losses, weighted_losses = losses
    assert float(weighted_losses.mean()) == pytest.approx(float(uniform_losses.mean()), rel=0.02)
    assert float(weighted_losses.std()) < 0.4 * float(uniform_losses.std())
    assert torch.equal(weights, trained.schedule.min_snr_weights(torch.arange(1000), 0.2).mean())
    batch = batch_of(4)
    times, weights = trained.draw_timesteps(batch["keys"])
    errors = trained.errors(batch, batch["keys"], times, trained.encode(batch, None)[0], None)
    assert torch.allclose(trained.loss(batch), (errors * weights).mean(), atol=1e-6)


@pytest.mark.heavy
def test_own_context_beats_a_shuffled_one_after_overfitting(stage):
    trained = stage(encoder={"decoder_dropout": 0.0, "num_local_queries": 4}).train()
    batch = batch_of(8)
    mean, std = trained.moments(batch)
    batch |= {"latent_mean": mean, "latent_std": std}
    optimizer = torch.optim.AdamW([weight for _, weight in trained.trained_parameters()], lr=3e-3)
    first = step(trained, optimizer, batch)
    for _ in range(60):
        last = step(trained, optimizer, batch)
    trained.eval()
    with torch.no_grad():
        context, pooled = trained.encode(batch, None)
        times = trained.uniform_timesteps(batch["keys"])
        own = trained.errors(batch, batch["keys"], times, context, pooled)
        shuffled = trained.errors(batch, batch["keys"], times, context.roll(1, 0), pooled)
    assert last < first
    assert float((shuffled - own).mean()) > 1e-4


def test_bf16_parts_track_float32(stage):
    full, half = (stage(frozen_dtype=dtype).requires_grad_(False) for dtype in ("float32", "bfloat16"))
    assert half.unet.dtype == torch.bfloat16
    assert next(half.encoder.decoder.parameters()).dtype == torch.float32
    assert half.schedule.alphas_cumprod.dtype == torch.float32
    assert float(half.loss(batch_of())) == pytest.approx(float(full.loss(batch_of())), rel=0.02)


@pytest.mark.heavy
def test_checkpoint_holds_trained_weights_only_and_exports(settings, fit, load, tmp_path):
    changes = {"run.max_steps": 2, "stage.init_args.export_encoder": True, "stage.init_args.encoder_size": 40}
    preview = {"pictures": 1, "steps": 1, "guidance_scale": 3.5}
    assert fit(settings(**changes, **{"stage.init_args.preview": preview})) == 0
    path = tmp_path / "run" / "step-00000002.ckpt"
    checkpoint = load(path)
    frozen = ("vae.", "unet.", "encoder.backbone.")
    assert checkpoint["state_dict"]
    assert not [name for name in checkpoint["state_dict"] if name.startswith(frozen)]
    assert not [name for name in checkpoint["ema"]["averages"] if name.startswith(frozen)]
    trained = read_trained(tmp_path / "run")
    whole = SeeCoder.from_pretrained(tmp_path / "run" / "encoder")
    for config in (trained.config, whole.config):  # what it was trained for travels with it
        assert (config["image_size"], config["guidance_scale"]) == (40, 3.5)
    exported = whole.state_dict()
    assert {name for name in exported if not name.startswith("backbone.")} == set(trained.trainable)
    assert trained.ema
    assert all(torch.equal(exported[name], value) for name, value in trained.ema.items())
    source = trained.backbone_source
    fresh = SeeCoder(**trained.config)
    fresh.load_backbone_weights(source)
    backbone = {name: value for name, value in fresh.state_dict().items() if name.startswith("backbone.")}
    assert all(torch.equal(exported[name], value) for name, value in backbone.items())


def test_gradients_of_a_batch_are_the_mean_of_its_samples_in_float64(stage):
    trained = stage(encoder={"decoder_dropout": 0.0, "decoder_attention": "spatial"}).train()
    batch = batch_of(4)
    mean, std = trained.moments(batch)
    maps = [level.double() for level in trained.encoder.compute_maps(batch["pixels"].float() / 255)]
    for part in (trained.encoder, trained.unet):
        part.double()

    def gradients(parts: list[slice]) -> torch.Tensor:
        trained.zero_grad()
        for rows in parts:
            context = trained.encoder.encode_maps([level[rows] for level in maps], None).context
            own = {"pixels": batch["pixels"][rows], "latent_mean": mean[rows], "latent_std": std[rows]}
            keys = batch["keys"][rows]
            (trained.errors(own, keys, trained.uniform_timesteps(keys), context, None).sum() / 4).backward()
        found = [weight.grad for weight in trained.encoder.parameters() if weight.grad is not None]
        return torch.cat([gradient.flatten() for gradient in found])

    whole = gradients([slice(0, 4)])
    singly = gradients([slice(row, row + 1) for row in range(4)])
    assert float(whole.norm()) > 0
    assert float((whole - singly).norm() / whole.norm()) < 1e-12


@torch.no_grad()
def test_the_encoder_sees_the_frames_and_the_noise_is_on_the_pixels(stage):
    made = stage().eval()
    batch, other = batch_of(), batch_of()["pixels"].flip(0)
    context, _ = made.encode({**batch, "frames": other}, None)
    assert torch.equal(context, made.encode({"pixels": other}, None)[0])
    times = torch.tensor([100, 300, 500, 700])
    plain = made.errors(batch, batch["keys"], times, context, None)
    assert torch.equal(made.errors({**batch, "frames": other}, batch["keys"], times, context, None), plain)


@torch.no_grad()
def test_the_encoder_sees_as_many_pixels_of_a_lying_picture_as_of_a_square(stage):
    made, seen = stage(encoder_size=64).eval(), []
    encode = made.encoder.encode
    made.encoder.encode = lambda pixels, *rest: seen.append(tuple(pixels.shape[2:])) or encode(pixels, *rest)
    for shape in ((32, 32), (32, 64), (96, 48)):
        made.encode({"pixels": torch.zeros(1, 3, *shape, dtype=torch.uint8)}, None)
    assert seen == [(64, 64), (45, 91), (91, 45)]


@torch.no_grad()
def test_the_loss_outside_the_mask_counts_what_it_is_told_to(stage):
    times = torch.tensor([100, 300, 500, 700])
    batch = batch_of()
    mask = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    mask[:, :, :16] = 255
    found = {}
    for outside in (0.0, 0.5, 1.0):
        made = stage(loss_outside_mask=outside).eval()
        context, pooled = made.encode(batch, None)
        found[outside] = made.errors({**batch, "mask": mask}, batch["keys"], times, context, pooled)
    plain = made.errors(batch, batch["keys"], times, context, pooled)
    assert torch.allclose(found[1.0], plain)
    # Halves of equal area: with weight w the mean is (inside + w * outside) / (1 + w).
    inside, outside = found[0.0], 2 * plain - found[0.0]
    assert torch.allclose(found[0.5], (inside + 0.5 * outside) / 1.5)
    assert not torch.allclose(inside, outside)
    with pytest.raises(ValueError, match="`loss_outside_mask`=2"):
        stage(loss_outside_mask=2)

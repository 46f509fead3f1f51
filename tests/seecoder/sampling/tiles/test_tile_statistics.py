from contextlib import nullcontext

import pytest
import torch
from diffusers import AutoencoderKL

from data.world.conditioner import BASE
from data.world.render import render
from data.world.scenes import sample_scenes
from seecoder.pipelines import bounded_memory
from seecoder.sampling.tiles.tile_statistics import normalised_like, shrunken


@pytest.fixture
def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(2, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    plain = torch.nn.GroupNorm(4, 8, affine=False)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1), norm, torch.nn.SiLU(), plain).double().requires_grad_(False)


def test_the_statistics_of_the_input_itself_change_nothing(network) -> None:
    values = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    expected = network(values)
    with normalised_like(lambda: network(values)):
        torch.testing.assert_close(network(values), expected, atol=1e-12, rtol=0)


def test_a_part_comes_out_as_it_does_in_the_whole(network) -> None:
    whole = torch.randn(1, 4, 12, 12, dtype=torch.float64) * torch.linspace(0, 3, 12, dtype=torch.float64)
    part = whole[..., :5]
    expected = network(whole)[..., :5]
    assert (network(part) - expected).abs().max() > 0.1  # its own statistics are others
    with normalised_like(lambda: network(whole)):
        torch.testing.assert_close(network(part), expected, atol=1e-12, rtol=0)


def test_nothing_is_left_behind_even_after_an_error(network) -> None:
    values, whole = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = network(values)

    def fail() -> None:
        with normalised_like(lambda: network(whole)):
            assert not torch.allclose(network(values), expected)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(IndexError), normalised_like(lambda: [][0]):
        pass
    assert torch.equal(network(values), expected)


def test_half_precision_is_normalised_in_float32(network) -> None:
    """A shift that is large beside the deviation would lose its digits in bfloat16."""
    norm = torch.nn.GroupNorm(2, 8, affine=False)
    values = (100.0 + torch.randn(1, 8, 32, 32)).bfloat16()
    with normalised_like(lambda: norm(values)):
        found = norm(values)
    assert found.dtype == torch.bfloat16
    assert (found.double() - norm.double()(values.double())).abs().max() < 0.01


def test_weights_may_be_brought_over_call_by_call(network) -> None:
    """As sequential offloading does: between two calls of a layer its weights are on the meta device."""
    from accelerate import cpu_offload

    values, whole = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    with normalised_like(lambda: network(whole)):
        expected = network(values)
    cpu_offload(network, torch.device("cpu"))
    assert network[1].weight.is_meta
    with normalised_like(lambda: network(whole)):
        assert torch.equal(network(values), expected)


def test_a_compiled_network_runs_as_it_was_written(network) -> None:
    values, whole = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    with normalised_like(lambda: network(whole)):
        expected = network(values)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    plain = compiled(values)
    for _ in range(10):  # more often than a compiler would try anew
        with normalised_like(lambda: compiled(whole)):
            assert torch.equal(compiled(values), expected)
    assert torch.equal(compiled(values), plain)


@pytest.mark.parametrize(("size", "area"), [((4, 200), 200), ((200, 4), 200), ((16, 384), 48 * 48), ((8, 8), 10)])
def test_narrow_sides_are_not_shrunk_to_nothing(size, area) -> None:
    small = shrunken(torch.randn(1, 2, *size), area)
    assert all(found >= min(side, 16) for found, side in zip(small.shape[-2:], size, strict=True))
    assert small.shape[-2] * small.shape[-1] <= max(area, min(size[0], 16) * min(size[1], 16))


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_shrunken_picture_keeps_every_channel_s_mean_and_deviation(multiple) -> None:
    size, area = (96 * multiple, 160 * multiple), (64 * multiple) ** 2
    values = torch.randn(2, 3, *size, dtype=torch.float64) + torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1)
    small = shrunken(values, area, multiple)
    height, width = small.shape[-2:]
    assert height * width <= area < (height + multiple) * (width + multiple)
    assert height % multiple == width % multiple == 0
    assert width / height == pytest.approx(160 / 96, rel=0.03)
    for statistic in (torch.mean, torch.std):
        kwargs = {"correction": 0} if statistic is torch.std else {}
        found, expected = (statistic(x, dim=(-2, -1), **kwargs) for x in (small, values))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert shrunken(values, size[0] * size[1]) is values


def test_in_the_world_tiles_have_the_tones_of_the_whole(monkeypatch) -> None:
    """Levels of 255 between tiles of 48 cells and the whole, a scene of 64 x 64 cells."""
    vae = AutoencoderKL.from_pretrained(BASE / "vae", torch_dtype=torch.float32).eval()
    pixels = render(sample_scenes(1, seed=5), 256) * 2.0 - 1.0
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        whole = vae.decode(latents).sample
        memory = bounded_memory.whole_gib(vae, (48, 48))
        ours = bounded_memory.decode_in_parts(vae, latents, memory=memory, notes=[])
        encoded = bounded_memory.encode_in_parts(vae, pixels, memory=memory, notes=(notes := []))
        monkeypatch.setattr(bounded_memory, "normalised_like", lambda *_: nullcontext())
        own = bounded_memory.decode_in_parts(vae, latents, memory=memory, notes=[])
    assert "tiles of 48 cells" in notes[0]
    error, without = ((found - whole).abs().mean() * 127.5 for found in (ours, own))
    assert error < 2.0
    assert without > 3.0 * error
    assert (encoded - latents).pow(2).mean() < 0.05 * latents.var()

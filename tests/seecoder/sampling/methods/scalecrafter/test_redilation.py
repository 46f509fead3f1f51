import pytest
import torch
from torch.nn import functional

from seecoder.sampling import DemoFusion, ScaleCrafter, sample
from seecoder.sampling.methods.scalecrafter.dispersion import closed_form_matrix, published_matrix
from seecoder.sampling.methods.scalecrafter.redilation import ReDilation, redilated
from seecoder.sampling.methods.unet_levels import select
from seecoder.sampling.step import Step


def conv(stride: int = 1, mode: str = "zeros") -> torch.nn.Conv2d:
    layer = torch.nn.Conv2d(3, 5, 3, stride=stride, padding=1, padding_mode=mode).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer.requires_grad_(False)


def step(index: int = 0, count: int = 50) -> Step:
    return Step(index, count, torch.tensor(981), 981.0, 1000, (32, 32), (16, 16))


def test_check_14_a_factor_of_one_is_the_plain_layer() -> None:
    layer, values = conv(), torch.randn((2, 3, 9, 8), dtype=torch.float64)
    expected = layer(values)
    with redilated(layer, (1.0, 1.0)):
        assert torch.equal(layer(values), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (1, 4)])
def test_check_14_an_integer_factor_is_a_dilated_convolution_without_resizing(stride, factor) -> None:
    layer, values = conv(stride), torch.randn((2, 3, 13, 18), dtype=torch.float64)
    expected = functional.conv2d(values, layer.weight, layer.bias, stride, padding=factor, dilation=factor)
    with redilated(layer, (float(factor[0]), float(factor[1]))):
        assert not layer._forward_hooks
        assert torch.equal(layer(values), expected)


@pytest.mark.parametrize("scale", [2, 3])
def test_check_14_dilation_on_the_grid_is_plain_convolution_on_its_lattices(scale) -> None:
    layer, values = conv(mode="circular"), torch.randn((1, 3, 12, 12), dtype=torch.float64)
    with redilated(layer, (float(scale), float(scale))):
        dilated = layer(values)
    for row in range(scale):
        for column in range(scale):
            lattice = layer(values[..., row::scale, column::scale])
            assert torch.allclose(dilated[..., row::scale, column::scale], lattice, atol=1e-12)


class ConvNet(torch.nn.Module):
    """A norm-free, attention-free, stride-1 network with the blocks of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        layers = [torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular") for _ in range(2)]
        self.down_blocks = torch.nn.ModuleList([torch.nn.Sequential(layers[0], torch.nn.Tanh())])
        self.mid_block = None
        self.up_blocks = torch.nn.ModuleList([torch.nn.Sequential(layers[1])])
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        self.double().requires_grad_(False)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.up_blocks[0](self.down_blocks[0](latents))


def test_check_14_scalecrafter_and_dilated_sampling_agree_on_a_convolutional_network(
    make_scheduler, context, relative
) -> None:
    net = ConvNet()
    lattices = DemoFusion(cosine_scale_2=0.0, use_windows=False, use_skip_residual=False, blur_sigma=1e-6, num_phases=2)
    crafted = ScaleCrafter(dilation={"down.0": 2.0, "up.0": 2.0}, dilate_tau=1.0, damp_tau=0.0)

    def run(method):
        return sample(
            net,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 16, 16),
            native_size=(8, 8),
            num_inference_steps=5,
            context=context[:1],
            generator=torch.Generator().manual_seed(0),
            method=method,
            unet=net,
        )

    assert relative(run([crafted, lattices]), run(lattices)) < 1e-9


@pytest.mark.parametrize("factor", [1.5, 2.5])
def test_check_15_a_fractional_factor_reaches_exactly_that_far(factor) -> None:
    """A constant shows the gain, a ramp shows the reach."""
    layer, side, inner = conv(), 60, slice(12, -12)
    places = torch.arange(side, dtype=torch.float64)
    constant = torch.full((1, 3, side, side), 2.0, dtype=torch.float64)
    rows, columns = (values.expand(1, 3, side, side) for values in torch.meshgrid(places, places, indexing="ij"))
    gain = layer.weight.sum(dim=(2, 3))  # (out, in)
    bias = layer.bias.view(-1, 1, 1)
    taps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    with redilated(layer, (factor, factor)):
        flat, tilted = layer(constant)[0, :, inner, inner], layer(0.3 * columns + 0.1 * rows)[0, :, inner, inner]
    assert torch.allclose(flat, (2.0 * gain.sum(dim=1)).view(-1, 1, 1) + bias, atol=1e-5)
    reach = factor * (
        0.3 * (layer.weight * taps).sum(dim=(1, 2, 3)) + 0.1 * (layer.weight * taps[:, None]).sum((1, 2, 3))
    )
    here = (0.3 * columns + 0.1 * rows)[0, :1, inner, inner] * gain.sum(dim=1).view(-1, 1, 1)
    assert torch.allclose(tilted, here + reach.view(-1, 1, 1) + bias, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 13), (8, 10), (1, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("factor", [(2.0, 2.0), (2.5, 2.5), (1.0, 1.7)])
def test_check_15_the_output_keeps_the_plain_size_on_odd_maps(size, stride, factor) -> None:
    layer, values = conv(stride), torch.randn((1, 3, *size), dtype=torch.float64)
    expected = layer(values).shape
    with redilated(layer, factor):
        assert layer(values).shape == expected


def fingerprint(unet) -> tuple:
    layers = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d)]
    attributes = [dict(vars(m)) for m in layers]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in layers]
    return {name: value.clone() for name, value in unet.state_dict().items()}, attributes, hooks


@pytest.mark.parametrize("matrix", [None, published_matrix(), closed_form_matrix()], ids=["none", "published", "ours"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_check_18_the_unet_is_given_back_bit_identical(matrix, interrupted, make_unet, context) -> None:
    unet = make_unet()
    latents = torch.randn((1, 4, 18, 21), dtype=torch.float64)
    weights, attributes, hooks = fingerprint(unet)
    before = unet(latents, 500, encoder_hidden_states=context[:1]).sample
    factors = {"level.1": (2.0, 2.0), "level.2": (2.5, 1.5)}
    disperse = ["level.2"] if matrix is not None else []
    patch = ReDilation(unet, factors, 50, disperse=disperse, disperse_until=50, matrix=matrix)
    try:
        with patch.active(step(), (18, 21)):
            during = unet(latents, 500, encoder_hidden_states=context[:1]).sample
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert interrupted
    assert during.shape == before.shape
    assert not torch.allclose(during, before)
    weights_after, attributes_after, hooks_after = fingerprint(unet)
    assert attributes_after == attributes
    assert hooks_after == hooks
    assert all(torch.equal(weights_after[name], value) for name, value in weights.items())
    assert torch.equal(unet(latents, 500, encoder_hidden_states=context[:1]).sample, before)


def test_dispersion_is_really_active_with_both_solvers(make_unet, context) -> None:
    unet, latents = make_unet(), torch.randn((1, 4, 16, 16), dtype=torch.float64)

    def run(matrix):
        disperse = [] if matrix is None else ["level.2"]
        patch = ReDilation(unet, {"level.2": (2.0, 2.0)}, 50, disperse=disperse, disperse_until=30, matrix=matrix)
        with patch.active(step(), (16, 16)):
            return unet(latents, 500, encoder_hidden_states=context[:1]).sample

    dilated, published, ours = run(None), run(published_matrix()), run(closed_form_matrix())
    assert not torch.allclose(dilated, published, rtol=1e-3)
    assert not torch.allclose(dilated, ours, rtol=1e-3)
    assert (ours - dilated).norm() < (published - dilated).norm()


def test_dispersion_ends_without_a_shape_error_before_or_after_dilation(make_unet, context) -> None:
    unet, latents = make_unet(), torch.randn((1, 4, 16, 16), dtype=torch.float64)
    for dilated_until, dispersed_until in ((10, 20), (20, 10)):
        patch = ReDilation(
            unet,
            {"level.2": (2.0, 2.0)},
            dilated_until,
            disperse=["mid"],
            disperse_until=dispersed_until,
            matrix=closed_form_matrix(),
        )
        for index in (5, 15, 25):
            with patch.active(step(index), (16, 16)):
                assert unet(latents, 500, encoder_hidden_states=context[:1]).sample.shape == latents.shape


@pytest.mark.parametrize("pattern", ["down.3", "level.3", "down.2.sampler", "up.7", "middle", "level.0.attentions.9"])
def test_check_18_a_pattern_that_matches_nothing_raises(pattern, make_unet) -> None:
    with pytest.raises(ValueError, match=f"{pattern!r} matches no convolution of this UNet, which has 3 levels"):
        ReDilation(make_unet(), {pattern: (2.0, 2.0)}, 50)


def test_patterns_address_levels_blocks_and_parts(make_unet) -> None:
    unet = make_unet()
    assert sorted(select(unet, "level.1")) == sorted([*select(unet, "down.1"), *select(unet, "up.1")])
    assert "mid.resnets.0.conv1" in select(unet, "level.2")
    assert list(select(unet, "down.1.sampler")) == ["down.1.sampler.conv"]
    with pytest.raises(TypeError, match="has no down_blocks, mid_block and up_blocks"):
        select(torch.nn.Linear(1, 1), "mid")


def test_layers_that_change_the_size_are_refused() -> None:
    layer = torch.nn.Conv2d(3, 3, 3, padding=0)
    with (
        pytest.raises(ValueError, match=r"padding=\(0, 0\) cannot be re-dilated"),
        redilated(layer, (2.0, 2.0)),
    ):
        pass

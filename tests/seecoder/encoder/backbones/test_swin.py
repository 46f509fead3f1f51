import pytest
import torch
from transformers import SwinBackbone as TransformersSwin
from transformers import SwinConfig

from seecoder.encoder.backbones.swin import SwinBackbone, pad_to_multiple, shift_masks

NAME = "swin_large_patch4_window12_384"


def _swin(window: int = 4, depths: tuple[int, ...] = (2, 2, 2), **more: object) -> SwinBackbone:
    torch.manual_seed(0)
    size = {"embed_dim": 8, "depths": depths, "num_heads": (1, 2, 4)[: len(depths)], "window_size": window}
    swin = SwinBackbone(NAME, {**size, **more}).eval()
    for name, parameter in swin.named_parameters():
        # Norms around one, everything else large enough that windows, masks and biases show.
        parameter.data = torch.randn_like(parameter) * 0.3 + (1 if "norm" in name and name.endswith("weight") else 0)
    return swin


def _oracle(swin: SwinBackbone, window: int, depths: tuple[int, ...]) -> TransformersSwin:
    """transformers' Swin, which pads before it shifts, with the weights of `swin`."""
    stages = [f"stage{index + 1}" for index in range(len(depths))]
    config = SwinConfig(
        embed_dim=8,
        depths=list(depths),
        num_heads=[1, 2, 4][: len(depths)],
        window_size=window,
        out_features=stages,
        layer_norm_eps=1e-5,
        drop_path_rate=0.0,
    )
    oracle = TransformersSwin(config).double().eval()
    state = swin.state_dict()
    for key, value in oracle.state_dict().items():
        if value.is_floating_point():
            _copy(key, value, state)
    return oracle


def _copy(key: str, value: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    """Fill one of transformers' tensors; the names are spelled out here and not taken from the code under test."""
    name = key.removeprefix("swin.").removeprefix("encoder.")
    for old, new in (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.norm", "patch_embed.norm"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.o_proj", "attn.proj"),
        ("attention.relative_position_bias.relative_position_bias_table", "attn.relative_position_bias_table"),
    ):
        name = name.replace(old, new)
    if name.startswith("hidden_states_norms.stage"):
        stage, leaf = name.removeprefix("hidden_states_norms.stage").split(".")
        name = f"norm{int(stage) - 1}.{leaf}"
    if ".downsample." in name:
        _, stage, rest = name.split(".", 2)
        name = f"layers.{int(stage) + 1}.{rest}"
    if "_proj." in name and ".attention." in name:
        stem, part, leaf = name.replace(".attention.", ".attn.").rsplit(".", 2)
        value.copy_(state[f"{stem}.qkv.{leaf}"].chunk(3)["qkv".index(part[0])])
    elif name not in ("layernorm.weight", "layernorm.bias"):  # the final norm, which no map goes through
        value.copy_(state[name])


@pytest.mark.parametrize("window", [4, 3])
@torch.no_grad()
def test_matches_transformers_at_every_size(window):
    depths = (2, 2, 2)
    swin = _swin(window, depths).double()
    oracle = _oracle(swin, window, depths)
    for height, width in [(64, 64), (48, 96), (100, 76), (37, 53), (32, 45), (130, 94), (40, 40)]:
        picture = torch.rand(2, 3, height, width, dtype=torch.float64)
        for ours, theirs in zip(swin(picture), oracle(picture).feature_maps, strict=True):
            assert ours.is_contiguous()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, msg=f"{height}x{width}")


@pytest.mark.parametrize(("window", "shift"), [((4, 4), (2, 2)), ((3, 3), (1, 1)), ((4, 3), (2, 1))])
def test_masks_are_the_pairs_that_the_shift_brought_together(window, shift):
    """By brute force: two cells of one window may see each other unless exactly one of them was wrapped around."""
    masks = shift_masks(window, shift)
    rows, columns = 3, 2
    height, width = rows * window[0], columns * window[1]
    origin = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    rolled = origin.roll((-shift[0], -shift[1]), dims=(0, 1))
    for row in range(rows):
        for column in range(columns):
            cells = rolled[row * window[0] :, column * window[1] :][: window[0], : window[1]].reshape(-1, 2)
            inside = origin[: window[0], : window[1]].reshape(-1, 2)
            apart = cells[:, None] - cells[None]
            moved_alike = (apart == inside[:, None] - inside[None]).all(-1)
            mask = masks[2 * (row == rows - 1) + (column == columns - 1)]
            assert torch.equal(mask == 0, moved_alike)
            assert set(mask.unique().tolist()) <= {0.0, -100.0}


@torch.no_grad()
def test_one_picture_does_not_depend_on_the_others():
    swin = _swin()
    pictures = torch.rand(2, 3, 60, 44)
    for both, first in zip(swin(pictures), swin(pictures[:1]), strict=True):
        torch.testing.assert_close(both[:1], first, rtol=0, atol=1e-5)


def test_stochastic_depth_is_off_unless_asked_for():
    assert not any("drop_path" in name and "DropPath" in repr(module) for name, module in _swin().named_modules())
    assert any("DropPath" in repr(module) for module in _swin(drop_path_rate=0.2).modules())


def test_channels_strides_and_idle_norms():
    swin = _swin()
    assert swin.channels == (8, 16, 32)
    assert swin.strides == (4, 8, 16)
    assert swin.idle_parameters(3) == []
    assert [id(parameter) for parameter in swin.idle_parameters(1)] == [
        id(parameter) for norm in (swin.norm0, swin.norm1) for parameter in norm.parameters()
    ]


def test_what_would_change_the_function_is_refused():
    with pytest.raises(ValueError, match=r"`backbone_args` sets \['always_partition'\], which the Swin encoder fixes"):
        _swin(always_partition=False)


def test_padding_is_at_the_bottom_and_the_right():
    padded = pad_to_multiple(torch.ones(1, 1, 5, 8), 4)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0].sum(1).tolist() == [8] * 5 + [0] * 3
    assert pad_to_multiple(padded, 4) is padded

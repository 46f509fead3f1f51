from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from data.world.render import render
from data.world.scenes import sample_scenes
from scripts.evaluation.counts import Sampling
from scripts.evaluation.highres import (
    Row,
    compiled,
    counted_windows,
    hue_spread,
    judged,
    judged_panoramas,
    measure,
    native_windows,
    pictures_of,
    seam_error,
)
from scripts.evaluation.highres_rows import ABLATIONS, ROWS
from seecoder import SeeCoderPipeline
from seecoder.sampling.composition import compose

SIDE = 64


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The shape of the world's base with next to no channels and random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae_class: Any = AutoencoderKL
    vae = vae_class(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        norm_num_groups=2,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    pipe = SeeCoderPipeline(vae=vae.eval(), unet=unet.eval(), scheduler=scheduler, encoder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def context() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def sampling(factor: int = 1, steps: int = 2) -> Sampling:
    return Sampling(steps, 4.0, 3, 2, SIDE * factor, SIDE * factor)


def test_work_counts_pictures_branches_and_area(pipeline, context):
    scenes = sample_scenes(2, 0)
    with counted_windows(pipeline.unet, (16, 16)) as windows:
        pictures_of(Row("plain"), pipeline, scenes, context, sampling(2, steps=3))
    assert sum(windows) == 3 * 2 * 2 * 4  # steps, pictures, branches, area
    assert not pipeline.unet._forward_pre_hooks


def test_native_samples_enlarged_by_one_are_native_samples(pipeline, context):
    scenes = sample_scenes(2, 0)
    plain = pictures_of(Row("plain"), pipeline, scenes, context, sampling())
    enlarged = pictures_of(Row("enlarged", source="enlarged"), pipeline, scenes, context, sampling())
    assert torch.allclose(plain, enlarged, atol=1e-5)
    assert pictures_of(Row("e", source="enlarged"), pipeline, scenes, context, sampling(2)).shape[-2:] == (128, 128)


def test_true_renderings_are_right_in_everything():
    scenes = sample_scenes(6, 5)
    numbers = judged(render(scenes, 128), scenes)
    assert numbers["all"] == numbers["count"] == numbers["objects"] == 1.0
    assert numbers["spectrum"] == 0.0
    assert numbers["fit"] > 0.9


def test_a_cell_has_what_the_table_shows(pipeline, context):
    pictures, numbers = measure(Row("plain"), pipeline, sample_scenes(2, 0), context, sampling(2))
    assert numbers["windows"] == 2 * 2 * 4
    assert numbers["seconds"] > 0
    assert pictures.shape == (2, 3, 128, 128)


def test_a_cell_needs_a_size_and_a_known_source(pipeline, context):
    with pytest.raises(ValueError, match="needs both"):
        pictures_of(Row("plain"), pipeline, sample_scenes(2, 0), context, Sampling())
    with pytest.raises(ValueError, match="rendered"):
        pictures_of(Row("plain", source="drawn"), pipeline, sample_scenes(2, 0), context, sampling())


@pytest.mark.parametrize("row", ROWS + ABLATIONS, ids=lambda row: row.label)
def test_every_row_samples_at_its_smallest_size(pipeline, context, row):
    compose(list(row.methods))
    factor = min(row.factors)
    size = Sampling(10, 4.0, 0, 1, SIDE * factor[0], SIDE * factor[1])
    if row.source == "sampled":
        pictures = pictures_of(row, pipeline, sample_scenes(1, 0), context[:1], size)
        assert pictures.shape == (1, 3, SIDE * factor[0], SIDE * factor[1])
        assert torch.isfinite(pictures).all()


def test_only_rows_that_leave_the_network_alone_may_run_compiled():
    changing = {row.label for row in ROWS if row.changes_network}
    assert changing == {"HiDiffusion"} | {row.label for row in ROWS if "ScaleCrafter" in row.label}


def test_compiled_code_ends_with_its_block(pipeline):
    def fail() -> None:
        with compiled(pipeline.unet, True):
            assert "forward" in vars(pipeline.unet)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    with compiled(pipeline.unet, False):
        assert "forward" not in vars(pipeline.unet)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_says_the_same_for_any_number_of_views(pipeline):
    def outputs() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        answers = []
        for count in (4, 6, 3):
            latents = torch.randn(count, 4, 16, 16, generator=generator)
            tokens = torch.randn(count, 5, 8, generator=generator)
            times = torch.full((count,), 500)
            answers.append(pipeline.unet(latents, times, encoder_hidden_states=tokens).sample)
        return answers

    with torch.no_grad():
        plain = outputs()
        with compiled(pipeline.unet, True):
            fast = outputs()
    for one, other in zip(plain, fast, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("degrees", "spread"), [((10, 10), 0), ((0, 180), 180), ((350, 10), 20), ((0, 90, 180), 120)])
def test_spread_of_hues_on_the_circle(degrees, spread):
    assert hue_spread(degrees) == pytest.approx(spread)


def test_seam_of_a_loop_and_of_a_ramp():
    columns = torch.arange(64)
    loop = torch.sin(2 * torch.pi * 3 * columns / 64).expand(3, 16, 64)
    assert seam_error(loop) == pytest.approx(1.0, abs=0.6)
    assert seam_error((columns / 64).expand(3, 16, 64)) == pytest.approx(63.0, rel=1e-3)


def test_windows_lie_side_by_side():
    panorama = torch.arange(3 * 4 * 10).view(3, 4, 10)
    left, right = native_windows(panorama)
    assert torch.equal(torch.cat([left, right], dim=-1), panorama[..., :8])


def test_an_object_across_the_seam_counts_once():
    """Four scenes of one background side by side, rolled so that the first object lies across the seam."""
    scenes = sample_scenes(1, 1)[torch.zeros(4, dtype=torch.int64)]
    panorama = torch.cat(list(render(scenes, 64)), dim=-1).roll(-32, dims=-1)
    numbers = judged_panoramas(panorama[None])
    assert numbers["objects"] == pytest.approx(1.0)
    assert numbers["hue_spread"] < 3


def test_different_backgrounds_spread():
    scenes = replace(
        sample_scenes(4, 1),
        background_degrees=torch.tensor([0.0, 90.0, 180.0, 270.0]),
        background_saturation=torch.full((4,), 0.2),
    )
    panorama = torch.cat(list(render(scenes, 64)), dim=-1)
    assert judged_panoramas(panorama[None])["hue_spread"] == pytest.approx(120, abs=8)

"""The memory of a run follows what goes through the network at once, not the number of views."""

import gc

import pytest
import torch

from seecoder.sampling import DemoFusion, MultiDiffusion, RectifiedHR, sample


@pytest.fixture
def live_bytes():
    """Counts the bytes of all tensors born since the test began, shared storage once."""

    def count() -> int:
        storages = {}
        for entry in gc.get_objects():
            if type(entry) is torch.Tensor:
                storage = entry.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    gc.collect()
    gc.freeze()  # what is here already is neither searched nor counted
    yield count
    gc.unfreeze()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "windowed",
    [
        lambda stride: MultiDiffusion(stride=stride),
        lambda stride: MultiDiffusion(stride=stride, blend="feather", jitter=(8 - stride) // 2),
        lambda stride: DemoFusion(stride=stride),
        lambda stride: [MultiDiffusion(stride=stride), RectifiedHR(switch_at=(0.5,), resize_in="latents")],
    ],
    ids=["MultiDiffusion", "jittered", "DemoFusion", "RectifiedHR"],
)
def test_check_26_memory_follows_the_micro_batch_not_the_views(windowed, make_scheduler, context, live_bytes) -> None:
    """Counted at the network's door: many times as many windows hold no more than a few."""
    views, peaks = [], []

    def watching(latents, timestep, context):
        views[-1] += len(latents)
        peaks[-1] = max(peaks[-1], live_bytes())
        assert len(latents) <= 6  # three views, two branches
        return torch.zeros_like(latents)

    for stride in (8, 4, 2, 1):
        views.append(0)
        peaks.append(0)
        sample(
            watching,
            make_scheduler("ddim"),
            latent_shape=(1, 4, 32, 32),
            native_size=(8, 8),
            num_inference_steps=2,
            context=context[:1],
            negative_context=context[1:2],
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            method=windowed(stride),
            view_batch_size=3,
        )
    assert views[-1] > 15 * views[0]
    assert max(peaks) < 1.1 * peaks[0]


def test_check_26_large_frames_count_by_their_area(make_scheduler, make_denoiser, context) -> None:
    denoiser = make_denoiser()
    sample(
        denoiser,
        make_scheduler("ddim"),
        latent_shape=(3, 4, 16, 16),
        native_size=(8, 8),
        num_inference_steps=1,
        context=context,
        view_batch_size=4,
    )
    assert denoiser.largest_batch == 1

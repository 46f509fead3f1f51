"""What goes together becomes a recipe; what does not is refused with the reason."""

import pytest

from seecoder.sampling import DemoFusion, HiDiffusion, MultiDiffusion, RectifiedHR, ScaleCrafter, SyncDiffusion
from seecoder.sampling.composition import compose
from seecoder.sampling.methods.perceptual import pyramid_distance
from seecoder.sampling.recipe import Recipe

SYNC = SyncDiffusion(sync_threshold=1.0, loss=pyramid_distance)


def test_every_method_fills_the_part_that_it_plays() -> None:
    stages, windows, network = DemoFusion(), MultiDiffusion(), ScaleCrafter()
    assert compose([network, windows, stages]) == Recipe(stages, windows, network)
    assert compose(SYNC) == Recipe(editor=SYNC, windows=SYNC.windows)
    assert compose(None) == compose([]) == Recipe()


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ([ScaleCrafter(), HiDiffusion()], "both change how far the same inner layers reach"),
        ([DemoFusion(), RectifiedHR()], "both decide which resolutions the run goes through"),
        ([MultiDiffusion(), MultiDiffusion()], "both decide through which windows the sample is seen"),
        ([SYNC, RectifiedHR()], "at the native size, where there is one window only"),
        ([MultiDiffusion(closed_loop=True), DemoFusion()], "which has a left and a right end"),
    ],
)
def test_what_does_not_compose_says_why(methods, reason) -> None:
    with pytest.raises(ValueError, match=f"do not compose: .*{reason}"):
        compose(methods)
    with pytest.raises(ValueError, match="do not compose"):
        compose(methods[::-1])


@pytest.mark.parametrize("setting", [{"window": 24}, {"stride": 4}, {"closed_loop": True}])
def test_the_windows_of_a_synchronised_run_have_one_owner(setting) -> None:
    """What SyncDiffusion says of windows would be dropped beside MultiDiffusion; the same said twice is no conflict."""
    (name,) = setting
    asked = SyncDiffusion(loss=pyramid_distance, **setting)
    with pytest.raises(ValueError, match=f"do not compose: `{name}`=.* Set `{name}` of MultiDiffusion"):
        compose([asked, MultiDiffusion()])
    windows = MultiDiffusion(jitter=1, **setting)
    assert compose([asked, windows]).windows == compose([SYNC, windows]).windows == windows
    assert getattr(compose([asked]).windows, name) == setting[name]


@pytest.mark.parametrize("method", ["demofusion", DemoFusion, 3, [ScaleCrafter(), "demofusion"]])
def test_what_is_no_method_is_refused(method) -> None:
    with pytest.raises(TypeError, match="is not a sampling method"):
        compose(method)


def test_the_same_windows_in_other_words_are_no_contradiction() -> None:
    compose([SyncDiffusion(stride=8), MultiDiffusion(stride=(8, 8))])
    compose([SyncDiffusion(window=[16, 16]), MultiDiffusion(window=(16, 16))])
    with pytest.raises(ValueError, match="would have no effect"):
        compose([SyncDiffusion(stride=8), MultiDiffusion(stride=(8, 4))])

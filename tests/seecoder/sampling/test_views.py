import itertools
from collections.abc import Sequence

import pytest
import torch

from seecoder.sampling.views import (
    View,
    full_view,
    jitter,
    lattices,
    window_starts,
    windows,
)


@pytest.mark.parametrize("window", [8, 12])
def test_check_03_windows_cover_every_length_at_every_stride(window: int) -> None:
    """Along one axis: from the first cell to the last, and no two neighbours further apart than the stride."""
    for length, stride in itertools.product(range(window, 5 * window + 1), range(1, window + 1)):
        starts = window_starts(length, window, stride)
        assert (starts[0], starts[-1] + window) == (0, length)
        assert all(0 < later - earlier <= stride for earlier, later in itertools.pairwise(starts))


def coverage(views: Sequence[View], size: tuple[int, int]) -> torch.Tensor:
    """How many views see each cell: (H, W) integers."""
    count = torch.zeros(size, dtype=torch.int64)
    for view in views:
        view.scatter_add(count, torch.ones(view.size, dtype=torch.int64))
    return count


def counted(views: Sequence[View], size: tuple[int, int]) -> torch.Tensor:
    """How many views of one size see each cell, as sums over their corners: quick for many sizes."""
    tops, lefts = torch.tensor([(view.top, view.left) for view in views]).T
    bottoms, rights = tops + views[0].height, lefts + views[0].width
    corners = torch.zeros(size[0] + 1, size[1] + 1, dtype=torch.int64)
    for rows, columns, sign in ((tops, lefts, 1), (tops, rights, -1), (bottoms, lefts, -1), (bottoms, rights, 1)):
        corners.index_put_((rows, columns), torch.full_like(rows, sign), accumulate=True)
    return corners.cumsum(0).cumsum(1)[:-1, :-1]


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_check_03_windows_cover_all_sizes_however_they_are_moved(stride: int) -> None:
    window, limit = 6, (6 - stride) // 2
    for size in itertools.product(range(window, 5 * window + 1), repeat=2):
        height, width = size
        plain = windows(size, (window, window), (stride, stride))
        assert [view[:2] for view in plain] == [
            *itertools.product(window_starts(height, window, stride), window_starts(width, window, stride))
        ]
        moved = jitter(plain, size, (limit, limit), key=height * width)
        assert {view.size for view in moved} == {(window, window)}
        tops, lefts = zip(*(view[:2] for view in moved), strict=True)
        assert min(tops) == min(lefts) == 0, "no window is left at the first row and column, or it went beyond"
        assert (max(tops) + window, max(lefts) + window) == size, "or at the last"
        assert counted(moved, size).min() >= 1


def test_the_two_ways_of_counting_agree() -> None:
    views = jitter(windows((20, 29), (8, 8), (4, 4)), (20, 29), (2, 2), key=3)
    assert torch.equal(counted(views, (20, 29)), coverage(views, (20, 29)))


def test_check_03_jitter_reaches_its_limit_and_not_further() -> None:
    size, plain = (64, 64), windows((64, 64), (16, 16), (8, 8))
    moves = set()
    for seed in range(40):
        moved = jitter(plain, size, (4, 4), seed)
        moves |= {after.top - before.top for before, after in zip(plain, moved, strict=True)}
    assert moves == set(range(-4, 5))


@pytest.mark.parametrize("size", [(12, 12), (13, 17), (15, 8), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (2, 5)])
def test_check_07_lattices_are_a_permutation_at_any_size(size: tuple[int, int], stride: tuple[int, int]) -> None:
    values = torch.arange(size[0] * size[1], dtype=torch.float64).view(1, *size)
    rebuilt = torch.zeros_like(values)
    for view in lattices(size, stride):
        view.scatter_add(rebuilt, view.gather(values))
    assert torch.equal(rebuilt, values)
    assert (coverage(lattices(size, stride), size) == 1).all()


def test_check_07_a_lattice_of_stride_one_is_the_whole() -> None:
    assert lattices((9, 7), (1, 1)) == (full_view((9, 7)),)


def test_check_13_view_counts_at_two_three_and_four_times_native() -> None:
    counts = [
        (len(windows((128 * s, 128 * s), (128, 128), (64, 64))), len(lattices((128 * s, 128 * s), (s, s))))
        for s in (2, 3, 4)
    ]
    assert counts == [(9, 4), (25, 9), (49, 16)]


@pytest.mark.parametrize(("width", "stride"), [(32, 4), (32, 8), (40, 8), (16, 16)])
def test_check_21_a_closed_loop_has_width_over_stride_views_and_even_coverage(width: int, stride: int) -> None:
    views = windows((16, width), (16, 16), (stride, stride), wrap=True)
    assert len(views) == width // stride
    assert coverage(views, (16, width)).unique().tolist() == [16 // stride]


def test_wrapped_views_gather_around_the_border() -> None:
    values = torch.arange(8.0).view(1, 8)
    assert View(0, 6, 1, 4, wrap=True).gather(values).tolist() == [[6.0, 7.0, 0.0, 1.0]]


def test_the_last_window_is_clamped_so_that_no_column_is_left_out() -> None:
    assert window_starts(70, 32, 16) == [0, 16, 32, 38]  # floor((70 - 32) / 16) + 1 = 3 windows would leave 6 cells
    assert window_starts(20, 32, 16) == [0]


def test_jitter_is_a_function_of_its_key() -> None:
    plain = windows((64, 64), (16, 16), (8, 8))
    assert jitter(plain, (64, 64), (4, 4), 7) == jitter(plain, (64, 64), (4, 4), 7)
    assert jitter(plain, (64, 64), (4, 4), 7) != jitter(plain, (64, 64), (4, 4), 8)


def test_strides_and_loops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`stride`=20 must lie between 1 and the window of 16 cells"):
        window_starts(64, 16, 20)
    with pytest.raises(ValueError, match="cannot be tiled evenly"):
        windows((16, 50), (16, 16), (8, 8), wrap=True)

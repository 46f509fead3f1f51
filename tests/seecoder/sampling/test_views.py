import itertools

import pytest
import torch

from seecoder.sampling.views import (
    View,
    coverage,
    feather,
    full_view,
    jitter,
    lattices,
    window_starts,
    windows,
    wrapped_windows,
)


@pytest.mark.parametrize("window", [8, 12])
def test_check_03_every_cell_is_covered_and_weights_are_a_partition_of_unity(window: int) -> None:
    for height, width, stride in itertools.product(range(window, 5 * window + 1, 7), (window, 29), (3, 4, window // 2)):
        size = (height, width)
        plain = windows(size, (window, window), (stride, stride))
        limit = (window - stride) // 2
        for views in (plain, *(jitter(plain, size, (limit, limit), seed) for seed in range(3))):
            assert all(v.top >= 0 and v.top + v.height <= height for v in views), "jitter left the rows"
            assert all(v.left >= 0 and v.left + v.width <= width for v in views), "jitter left the columns"
            assert coverage(views, size).min() >= 1
            total = torch.zeros(size, dtype=torch.float64)
            for view in views:
                view.scatter_add(total, feather(view.size))
            shares = torch.zeros(size, dtype=torch.float64)
            for view in views:
                view.scatter_add(shares, feather(view.size) / view.gather(total))
            assert torch.allclose(shares, torch.ones_like(shares), atol=1e-12)


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
    views = wrapped_windows((16, width), (16, 16), (stride, stride))
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
        wrapped_windows((16, 50), (16, 16), (8, 8))

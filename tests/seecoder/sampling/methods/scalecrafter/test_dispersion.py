import pytest
import torch

from seecoder.sampling.methods.scalecrafter.dispersion import (
    closed_form_matrix,
    dilation_matrix,
    dispersed,
    hat_convolution,
    high_band_form,
    published_matrix,
)


def infinite_plane_matrix(weight: float) -> torch.Tensor:
    """R = (H'H + w²)⁻¹ (H'H D + w² P): the published equations away from all borders; D as `weight` goes to 0."""
    gram = hat_convolution().T @ hat_convolution()
    identity = torch.eye(25, dtype=torch.float64)
    padding = torch.zeros((5, 5, 9), dtype=torch.float64)  # P: the kernel itself in the middle
    padding[1:4, 1:4] = torch.eye(9, dtype=torch.float64).view(3, 3, 9)
    right = gram @ dilation_matrix() + weight**2 * padding.view(25, 9)
    return torch.linalg.solve(gram + weight**2 * identity, right)


def structural_error(matrix: torch.Tensor) -> float:
    """Root mean square of |H (b - D a)| / |H D a| over white kernels: the error that white features see inside."""
    exact = hat_convolution() @ dilation_matrix()
    return float((hat_convolution() @ matrix - exact).norm() / exact.norm())


def high_band_energy(matrix: torch.Tensor) -> float:
    """Energy in the high band relative to the dilated kernel's, over white kernels: a measure of gridding."""
    form = high_band_form()
    return float(torch.trace(matrix.T @ form @ matrix) / torch.trace(dilation_matrix().T @ form @ dilation_matrix()))


def test_check_17_the_published_matrix_in_numbers() -> None:
    matrix = published_matrix()
    assert matrix[0, :3].tolist() == pytest.approx([0.6488, -0.0029, -0.0263], abs=5e-5)
    assert float(matrix[12, 4]) == pytest.approx(1.0, abs=5e-5)
    sums = matrix.sum(dim=0)
    assert sums.tolist() == pytest.approx([1.1267, 1.0613, 1.1267, 1.0613, 1, 1.0613, 1.1267, 1.0613, 1.1267], abs=5e-5)
    assert float(sums.sum()) == pytest.approx(9.75, abs=5e-3)  # an all-ones kernel should keep 9


@pytest.mark.parametrize("matrix", [published_matrix(), closed_form_matrix(0.1)], ids=["published", "closed form"])
def test_check_17_dispersion_commutes_with_the_symmetries_of_the_square(matrix) -> None:
    kernel = torch.randn((2, 3, 3, 3), dtype=torch.float64)
    moves = [lambda k, turns=turns, flip=flip: torch.rot90(k.flip(-1) if flip else k, turns, (-2, -1))
             for turns in range(4) for flip in (False, True)]  # fmt: skip
    for move in moves:
        assert torch.allclose(dispersed(move(kernel), matrix), move(dispersed(kernel, matrix)), atol=1e-9)


def test_check_17_on_the_infinite_plane_structure_alone_is_dilation() -> None:
    assert torch.allclose(infinite_plane_matrix(1e-8), dilation_matrix(), atol=1e-12)
    assert structural_error(infinite_plane_matrix(0.05)) == pytest.approx(0.008, abs=1e-3)


def test_check_17_the_closed_form_beats_the_published_matrix_on_both_axes() -> None:
    ours, published = closed_form_matrix(0.1), published_matrix()
    assert torch.allclose(ours.sum(dim=0), torch.ones(9, dtype=torch.float64), atol=1e-9)
    assert structural_error(ours) <= 0.08
    assert high_band_energy(ours) <= 0.55
    assert structural_error(published) == pytest.approx(0.21, abs=0.01)
    assert high_band_energy(published) == pytest.approx(0.63, abs=0.01)
    assert high_band_energy(dilation_matrix()) == pytest.approx(1.0)


@pytest.mark.parametrize(("penalty", "band", "error"), [(0.03, 0.71, 0.036), (0.1, 0.53, 0.076), (0.3, 0.37, 0.138)])
def test_check_17_the_trade_off_of_the_closed_form(penalty, band, error) -> None:
    assert high_band_energy(closed_form_matrix(penalty)) == pytest.approx(band, abs=0.012)
    assert structural_error(closed_form_matrix(penalty)) == pytest.approx(error, abs=0.003)

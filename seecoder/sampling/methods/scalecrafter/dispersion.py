"""Convolution dispersion: the 5 x 5 kernel that does on an enlarged feature map what a 3 x 3 kernel does on the map.

Paper: He et al., "ScaleCrafter", ICLR 2024, arXiv 2310.07702, Sec. 3.3. Both solvers give a matrix R (25 x 9): the
dispersed kernel is b = R a, with a and b the kernels in row-major order, for any weights and any channels.

`published_matrix` is the paper's least squares on a small zero-padded patch. `closed_form_matrix` is ours: on the
infinite plane the structure equation alone has the dilated kernel as its only solution, so what is wanted besides is
said directly: little energy in the high band (where dilation leaves its grid pattern), and the same gain for constants.
It leaves a third of the structural error of the published matrix at a lower high band, and keeps every tap's gain at 1.
"""

from functools import lru_cache

import torch

KERNEL = 3  # side of the kernels that are dispersed
DISPERSED = 5  # side of the kernels that they become
_BINS = 64  # side of the discrete Fourier transform that the high band is measured on


@lru_cache(maxsize=8)
def published_matrix(patch: int = 3, weight: float = 0.05) -> torch.Tensor:
    """R of the paper's equations (Eq. 5-6): structure and pixel calibration on a zero-padded patch.

    For every output pixel p and input pixel q of the patch
      structure: d[C_5(U x; b)]_p / dx_q = d[U C_3(x; a)]_p / dx_q, with U the corner-aligned bilinear enlargement;
      pixel:     d[C_5(x; b)]_p / dx_q = d[C_3(x; a)]_p / dx_q.
    The rows of the pixel equations are multiplied by `weight`, so that it acts squared, where the paper writes it
    plain; 0.05 on a patch of 3 is what the released matrix was made with.
    """
    large = 2 * patch - 1
    enlarge = _bilinear(patch)
    structure_left = torch.stack([(shift @ enlarge).flatten() for shift in _shifts(large, DISPERSED)], dim=1)
    structure_right = torch.stack([(enlarge @ shift).flatten() for shift in _shifts(patch, KERNEL)], dim=1)
    pixel_left = torch.stack([shift.flatten() for shift in _shifts(patch, DISPERSED)], dim=1)
    pixel_right = torch.stack([shift.flatten() for shift in _shifts(patch, KERNEL)], dim=1)
    left = torch.cat([structure_left, weight * pixel_left])
    right = torch.cat([structure_right, weight * pixel_right])
    return torch.linalg.solve(left.T @ left, left.T @ right)


@lru_cache(maxsize=8)
def closed_form_matrix(penalty: float = 0.1) -> torch.Tensor:
    """R of: minimise |H (b - D a)|² + penalty * |high band of b|² with every column of R summing to 1.

    G = H'H + penalty * Q, R₀ = G⁻¹ H'H D, R = R₀ + G⁻¹ 1 (1 - 1'R₀) / (1'G⁻¹ 1).
    """
    gram = hat_convolution().T @ hat_convolution()
    system = gram + penalty * high_band_form()
    free = torch.linalg.solve(system, gram @ dilation_matrix())
    ones = torch.ones((DISPERSED**2, 1), dtype=torch.float64)
    direction = torch.linalg.solve(system, ones)
    return free + direction @ (1.0 - free.sum(dim=0, keepdim=True)) / direction.sum()


def dispersed(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Kernels (out, in, 3, 3) -> (out, in, 5, 5), b = R a."""
    flat = weights.flatten(start_dim=2).to(torch.float64) @ matrix.T.to(weights.device)
    return flat.view(*weights.shape[:2], DISPERSED, DISPERSED).to(weights.dtype)


@lru_cache(maxsize=1)
def dilation_matrix() -> torch.Tensor:
    """D (25 x 9): the taps of a kernel moved apart by one zero."""
    along_axis = torch.zeros((DISPERSED, KERNEL), dtype=torch.float64)
    along_axis[::2] = torch.eye(KERNEL)
    return torch.kron(along_axis, along_axis)


@lru_cache(maxsize=1)
def high_band_form() -> torch.Tensor:
    """Q (25 x 25): b'Qb is the mean of |DFT(b)|² over the bins with a frequency above pi / 2 along either axis."""
    frequencies = torch.fft.fftfreq(_BINS, dtype=torch.float64).abs()
    high = (frequencies[:, None] > 0.25) | (frequencies[None, :] > 0.25)
    basis = torch.eye(DISPERSED**2, dtype=torch.float64).view(-1, DISPERSED, DISPERSED)
    spectra = torch.fft.fft2(basis, s=(_BINS, _BINS))[:, high]
    return (spectra @ spectra.conj().T).real / high.sum()


@lru_cache(maxsize=1)
def hat_convolution() -> torch.Tensor:
    """H (49 x 25): full convolution of a 5 x 5 kernel with the bilinear hat of peak 1."""
    hat = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    basis = torch.eye(DISPERSED**2, dtype=torch.float64).view(-1, 1, DISPERSED, DISPERSED)
    convolved = torch.nn.functional.conv2d(basis, (hat[:, None] * hat[None, :])[None, None], padding=2)
    return convolved.flatten(start_dim=1).T


def _bilinear(patch: int) -> torch.Tensor:
    """Corner-aligned bilinear enlargement to 2 * patch - 1 as a matrix over flattened patches."""
    basis = torch.eye(patch**2, dtype=torch.float64).view(-1, 1, patch, patch)
    large = torch.nn.functional.interpolate(basis, size=2 * patch - 1, mode="bilinear", align_corners=True)
    return large.flatten(start_dim=1).T


def _shifts(side: int, kernel: int) -> list[torch.Tensor]:
    """For every tap of a kernel the matrix that same-size convolution multiplies it with, over flattened patches."""
    basis = torch.eye(side**2, dtype=torch.float64).view(-1, 1, side, side)
    taps = torch.eye(kernel**2, dtype=torch.float64).view(-1, 1, kernel, kernel)
    responses = torch.nn.functional.conv2d(basis, taps, padding=kernel // 2)  # (inputs, taps, side, side)
    return [responses[:, tap].flatten(start_dim=1).T for tap in range(kernel**2)]

"""Sizes of the stages of a cascade, for any aspect ratio."""

from seecoder.sampling.views import Size


def base_size(size: Size, native_size: Size) -> Size:
    """The first stage: the aspect ratio of `size` at (about) the native area, in multiples that a UNet likes.

    A base of the native *area* keeps the number of cells that the network knows, where scaling the longer side down to
    the native side (DemoFusion's rule) would halve the trained pixels at 2:1.
    """
    scale = scale_over(size, native_size)
    if scale <= 1.0:
        return size
    multiple = cell_multiple(native_size)
    height, width = (max(multiple, multiple * round(length / scale / multiple)) for length in size)
    return min(height, size[0]), min(width, size[1])


def panorama_base(size: Size, native_size: Size) -> Size:
    """The first stage of a panorama: its shorter side at the native one, for windows that are whole pictures."""
    factor = max(native_size[0] / size[0], native_size[1] / size[1])
    return scaled_size(size, factor, native_size)


def scale_over(size: Size, native_size: Size) -> float:
    """How many times larger than native `size` is along one side, by area; 2.0 is four times the cells."""
    return ((size[0] * size[1]) / (native_size[0] * native_size[1])) ** 0.5


def cell_multiple(native_size: Size) -> int:
    """The multiple that stage sizes are rounded to: 8 cells, less for networks whose native side is below 32."""
    multiple = 8
    while multiple > 1 and multiple * 4 > min(native_size):
        multiple //= 2
    return multiple


def scaled_size(size: Size, factor: float, native_size: Size) -> Size:
    """`size` times `factor` (at most 1), rounded to `cell_multiple`; exactly `size` at factor 1."""
    if factor >= 1.0:
        return size
    multiple = cell_multiple(native_size)
    height, width = (max(multiple, multiple * round(length * factor / multiple)) for length in size)
    return min(height, size[0]), min(width, size[1])

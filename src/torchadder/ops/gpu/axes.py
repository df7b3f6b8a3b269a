"""Images have three axes here (D, H, W): those that a convolution lacks have size 1 and stride 0."""

from collections.abc import Sequence

from torch import Tensor

from ..geometry import Geometry

AXES = 3


def lifted(values: Sequence[int], missing: int) -> tuple[int, ...]:
    """One number for each of three axes."""
    return (missing,) * (AXES - len(values)) + tuple(values)


def sizes(image: Tensor) -> tuple[int, ...]:
    """(D, H, W) of an (N, C, ...) or (C_out, C_in, ...) tensor."""
    return lifted(image.shape[2:], 1)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Its five strides."""
    return *tensor.stride()[:2], *lifted(tensor.stride()[2:], 0)


def constants(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Stride, padding and dilation of three axes."""
    return lifted(geometry.stride, 1), lifted(geometry.padding, 0), lifted(geometry.dilation, 1)


def blocks_of(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)

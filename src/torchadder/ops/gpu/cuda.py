"""The CUDA C++ route: which of kernels/ computes a convolution, in which tile, and what it is handed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import Geometry
from . import axes, nvrtc
from .axes import blocks_of
from .nvrtc import Call, Kernel
from .tuning import Choice

MOST = (1 << 31) - 256  # of what 32-bit numbers count, a block included: pixels, elements of an image, blocks
NARROW = 4  # a group of fewer channels or filters leaves a tile mostly empty
THREADS = 256  # of a block whose threads compute an element each
WARP, BUSY = 32, 6  # threads of a warp, and warps that keep a multiprocessor's four schedulers at work


class Tile(NamedTuple):
    """Pixels by channels of a block, and of a thread in it.

    A multiprocessor keeps registers for `resident` blocks: as many as spill none within the loop. `share`: of FADD and
    FFMA among the loop's instructions.
    """

    rows: int
    columns: int
    r: int
    c: int
    resident: int
    share: float

    @property
    def threads(self) -> int:
        return self.rows // self.r * (self.columns // self.c)

    def blocks(self, pixels: int, channels: int, count: int) -> int:
        """Of so many pixels by so many channels, `count` times."""
        return blocks_of(pixels, self.rows) * blocks_of(channels, self.columns) * count


FORWARD_TILES = (
    Tile(128, 128, 8, 8, 2, 0.89),
    Tile(128, 64, 8, 8, 3, 0.86),
    Tile(64, 64, 8, 8, 6, 0.86),
    Tile(128, 32, 8, 8, 6, 0.83),
    Tile(64, 32, 8, 4, 8, 0.77),
    Tile(64, 32, 4, 4, 5, 0.70),
    Tile(256, 16, 8, 4, 4, 0.71),
)
GRAD_INPUT_TILES = (
    Tile(128, 128, 8, 8, 1, 0.88),
    Tile(64, 64, 8, 4, 3, 0.79),
    Tile(128, 32, 8, 4, 4, 0.75),
    Tile(64, 32, 4, 4, 4, 0.65),
    Tile(256, 16, 8, 4, 2, 0.69),
    Tile(128, 16, 4, 4, 4, 0.60),
)
TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat", torch.int32: "unsigned"}
Laid = tuple[tuple[int, ...], tuple[int, ...], bool]  # a tensor's shape, strides, and Layout.aligned


class Layout(NamedTuple):
    """Of a tensor: its three axes' sizes, its five strides, and whether its address is a multiple of four elements."""

    images: int
    channels: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool

    @classmethod
    def of(cls, laid: Laid) -> Layout:
        shape, strides, aligned = laid
        images, channels = shape[:2]
        strides = *strides[:2], *axes.lifted(strides[2:], 0)
        return cls(images, channels, axes.lifted(shape[2:], 1), strides, aligned)

    @property
    def fours(self) -> bool:
        """Whether channels lie densely, four by four at addresses that one access can read."""
        used = [
            s for s, n in zip((self.strides[0], *self.strides[2:]), (self.images, *self.size), strict=True) if n > 1
        ]
        return self.aligned and self.strides[1] == 1 and all(s % 4 == 0 for s in used)

    @property
    def pixels_in_fours(self) -> bool:
        """Whether the pixels of a channel lie densely, four by four at addresses that one access can read."""
        dense = prod(self.size[1:]), self.size[2], 1
        within = [s == d for s, d, n in zip(self.strides[2:], dense, self.size, strict=True) if n > 1]
        used = [s for s, n in zip(self.strides[:2], (self.images, self.channels), strict=True) if n > 1]
        return self.aligned and prod(self.size) % 4 == 0 and all(within) and all(s % 4 == 0 for s in used)

    @property
    def numbers(self) -> tuple[Any, ...]:
        return np.int64(self.strides[0]), *(np.int32(s) for s in self.strides[1:])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, layout: torch.memory_format) -> Tensor:
    """Y, x's dtype and `layout`, of x (N, C_in, ...) and float32 weight (C_out, C_in / groups, ...), bias (C_out,).

    An int32 is four unsigned bytes of as many channels, in x and in the weight, and a sum of them in Y: an experiment.
    """
    y = torch.empty(geometry.output_shape(x, weight), dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel():
        weight = _channels_dense(weight)
        bias = None if bias is None else bias.contiguous()
        _of_forward(geometry, x.dtype, _laid(x), _laid(weight), _laid(y)).launch(x, weight, bias, y)
    return y


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """dX, x's dtype and `layout`, by the rule "hardtanh" or "sign"."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if dx.numel():
        weight = _channels_dense(weight)
        laid = _laid(grad), _laid(x), _laid(weight), _laid(dx)
        _of_grad_input(geometry, x.dtype, rule, *laid).launch(grad, x, weight, dx)
    return dx


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, layout: torch.memory_format
) -> Tensor:
    """dW by the rule "sign", float32 and `layout`: partial sums over splits of the pixels, then their sum."""
    pixels, (c_out, channels, *kernel) = grad[:, 0].numel(), weight.shape
    splits = max(1, min(64, pixels // 256))
    partial = torch.empty(splits, c_out, *kernel, channels, device=x.device)
    if pixels:
        laid = _laid(grad), _laid(x), _laid(weight)
        _of_grad_weight_sign(geometry, x.dtype, splits, *laid).launch(grad, x, weight, partial)
    else:
        partial.zero_()
    return partial.sum(0).movedim(-1, 1).contiguous(memory_format=layout)


@lru_cache(4096)
def _of_forward(geometry: Geometry, dtype: torch.dtype, *laid: Laid) -> Choice:
    x, weight, y = map(Layout.of, laid)
    filters, channels = y.channels // geometry.groups, weight.channels
    pixels = y.images * prod(y.size)
    numbers = (*_shape(geometry, x, weight, y), *x.numbers, *weight.numbers, *y.numbers)
    pixels_first = y.strides[1] != 1
    if min(filters, channels) < NARROW and geometry.groups > 1:
        return _narrow("FORWARD", "forward_narrow", (), dtype, pixels_first, y, numbers)
    fours = channels % 4 == 0
    store4 = prod(y.size) % 4 == 0 if pixels_first else filters % 4 == 0
    flags = (fours and x.fours, fours and weight.aligned, pixels_first, store4)
    return _tiled(
        "FORWARD", "forward_tile", (), dtype, flags, FORWARD_TILES, (pixels, filters, geometry.groups), numbers
    )


@lru_cache(4096)
def _of_grad_input(geometry: Geometry, dtype: torch.dtype, rule: str, *laid: Laid) -> Choice:
    grad, x, weight, dx = map(Layout.of, laid)
    filters, channels = grad.channels // geometry.groups, weight.channels
    stride, _, dilation = axes.constants(geometry)
    periods = [np.int32(s // gcd(s, d)) for s, d in zip(stride, dilation, strict=True)]
    shape = _shape(geometry, x, weight, grad, dx)
    numbers = (*shape, *periods, *grad.numbers, *x.numbers, *weight.numbers, *dx.numbers)
    pixels_first, rule = dx.strides[1] != 1, {"hardtanh": "HardTanh", "sign": "Sign"}[rule]
    if min(filters, channels) < NARROW and geometry.groups > 1:
        return _narrow("GRAD_INPUT", "grad_input_narrow", (rule,), dtype, pixels_first, dx, numbers)
    store4 = prod(stride) == 1 and prod(x.size) % 4 == 0 if pixels_first else channels % 4 == 0
    flags = (
        filters % 4 == 0 and grad.fours,
        channels % 4 == 0 and weight.aligned,
        pixels_first,
        store4,
        store4 and (x.pixels_in_fours if pixels_first else x.fours),
    )
    of_class = x.images * prod(blocks_of(*axis) for axis in zip(x.size, stride, strict=True))
    work = (of_class, channels, geometry.groups * prod(stride))
    return _tiled("GRAD_INPUT", "grad_input_tile", (rule,), dtype, flags, GRAD_INPUT_TILES, work, numbers)


@lru_cache(4096)
def _of_grad_weight_sign(geometry: Geometry, dtype: torch.dtype, splits: int, *laid: Laid) -> Choice:
    grad, x, weight = map(Layout.of, laid)
    numbers = (*_shape(geometry, x, weight, grad), *grad.numbers, *x.numbers, *weight.numbers)
    elements = weight.images * weight.channels * prod(weight.size)
    kernel = Kernel("GRAD_WEIGHT_SIGN", THREADS, 1, "grad_weight_sign_split", (TYPES[dtype],), TYPES[dtype])
    return Choice([Call(kernel, (blocks_of(elements, THREADS), splits), numbers)])


def _tiled(
    macro: str,
    function: str,
    rule: tuple[str, ...],
    dtype: torch.dtype,
    flags: tuple[bool, ...],
    tiles: Sequence[Tile],
    work: tuple[int, int, int],
    numbers: tuple[Any, ...],
) -> Choice:
    """A call for each tile; `work` is pixels, channels, and how many times as much there is of both."""
    calls = []
    for tile in sorted(tiles, key=lambda tile: _clocks(tile, *work)):
        arguments = (*rule, TYPES[dtype], *tile[:4], *flags)
        kernel = Kernel(macro, tile.threads, tile.resident, function, arguments, TYPES[dtype])
        calls.append(Call(kernel, (_counted(tile.blocks(*work), "blocks"), 1), numbers))
    return Choice(calls)


def _narrow(
    macro: str,
    function: str,
    rule: tuple[str, ...],
    dtype: torch.dtype,
    pixels_first: bool,
    result: Layout,
    numbers: tuple[Any, ...],
) -> Choice:
    kernel = Kernel(macro, THREADS, 1, function, (*rule, TYPES[dtype], pixels_first), TYPES[dtype])
    blocks = result.images * blocks_of(result.channels * prod(result.size), THREADS)
    return Choice([Call(kernel, (_counted(blocks, "blocks"), 1), numbers)])


def _clocks(tile: Tile, pixels: int, channels: int, count: int) -> float:
    """What counting says of a tile's time, on the multiprocessor that gets the most of its blocks.

    They come in rounds of as many as are resident; the last round may have too few warps to keep it busy.
    """
    blocks = blocks_of(tile.blocks(pixels, channels, count), nvrtc.multiprocessors())
    rest = blocks % tile.resident
    idle = max(1.0, BUSY / (rest * tile.threads / WARP)) if rest else 1.0
    return (blocks - rest + rest * idle) * tile.rows * tile.columns / tile.share


def _channels_dense(weight: Tensor) -> Tensor:
    """(C_out, C_in / groups, ...) whose channels lie densely, tap after tap."""
    return weight.movedim(1, -1).contiguous().movedim(-1, 1)


def _laid(tensor: Tensor) -> Laid:
    return tensor.shape, tensor.stride(), tensor.data_ptr() % (4 * tensor.element_size()) == 0


def _shape(geometry: Geometry, x: Layout, weight: Layout, y: Layout, *others: Layout) -> tuple[Any, ...]:
    stride, padding, dilation = axes.constants(geometry)
    for image in (x, y, *others):
        _counted(image.images * prod(image.size), "pixels")
        _counted(sum(n * s for n, s in zip((image.channels, *image.size), image.strides[1:], strict=True)), "elements")
    first = (x.images, geometry.groups, weight.images // geometry.groups, weight.channels)
    return tuple(map(np.int32, (*first, *x.size, *y.size, *weight.size, *stride, *padding, *dilation)))


def _counted(count: int, what: str) -> int:
    if count >= MOST:
        raise ValueError(f"{count} {what} in one call: the GPU's kernels count to {MOST - 1}; split the batch")
    return count

"""The Triton route: tensors of any strides, handed to the Triton kernels with the geometry in three axes.

The first tile that _tiles gives is the heuristic's, and runs. Where torch.backends.cudnn.benchmark is on, Triton times
them all on the first call of each kind (shapes, strides, dtype, geometry) and keeps the fastest, on disk too. The
numbers are the same either way: tiles add up in one order.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.testing
from torch import Tensor

from . import triton_kernels as kernels
from .geometry import Geometry

_NARROW = 8  # fewer columns a group, and a tile spans many groups
_ENOUGH = 264  # programs: two for each multiprocessor of the largest GPUs
_FUSED = {"enable_fp_fusion": True}  # dX is FADD.SAT and FFMA; Triton's default changes with 3.10
_PARTS = 1024  # programs that share the sums of a weight gradient


class Tile(NamedTuple):
    """Pixels by columns that `warps` warps compute, `unroll` terms at a time; `registers` is a thread's most."""

    pixels: int
    columns: int
    unroll: int = 1
    warps: int = 4
    registers: int = 128

    @property
    def constants(self) -> dict[str, int]:
        return {"PIXELS": self.pixels, "COLUMNS": self.columns, "UNROLL": self.unroll}

    @property
    def options(self) -> dict[str, int]:
        """For Triton's compiler; only that for NVIDIA knows a limit of registers."""
        limit = {} if torch.version.hip else {"maxnreg": self.registers}
        return {"num_warps": self.warps, **limit}


class Work(NamedTuple):
    """What tiles share out: pixels of so many classes by columns of so many groups, `inner` terms of a sum a tap."""

    pixels: int
    classes: int
    columns: int
    groups: int
    inner: int
    narrow: bool

    def programs(self, pixels: int, columns: int) -> int:
        return blocks_of(self.pixels, pixels) * self.classes * blocks_of(self.columns, columns) * self.groups


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, layout: torch.memory_format) -> Tensor:
    """Y (N, C_out, ...), of x's dtype; weight and bias are float32."""
    y = torch.empty(geometry.output_shape(x, weight), dtype=x.dtype, device=x.device, memory_format=layout)
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    pixels = y.shape[0] * prod(y.shape[2:])
    work = _work(pixels, 1, filters, geometry.groups, channels)
    _launch(
        kernels.forward,
        work,
        _tiles(work, x),
        *(x, weight, y if bias is None else bias.contiguous(), y),
        *(0 if bias is None else weight.shape[0], x.shape[0], work.groups, work.columns, filters, channels),
        *(*sizes(x), *sizes(y), *strides(x), *strides(weight), *strides(y)),
        *_constants(weight, geometry),
        NARROW=work.narrow,
        WIDE=_is_wide(x, weight, y),
    )
    return y


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """dX (N, C_in, ...), of x's dtype; rule is "hardtanh" or "sign"."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    of_class = x.shape[0] * prod(blocks_of(*axis) for axis in zip(x.shape[2:], geometry.stride, strict=True))
    work = _work(of_class, prod(geometry.stride), channels, geometry.groups, filters)
    _launch(
        kernels.grad_input,
        work,
        _tiles(work, grad),
        *(grad, x, weight, dx),
        *(of_class, x.shape[0], work.groups, work.columns, channels, filters),
        *(*sizes(x), *sizes(grad), *strides(grad), *strides(x), *strides(weight), *strides(dx)),
        *_constants(weight, geometry),
        SIGN=rule == "sign",
        NARROW=work.narrow,
        WIDE=_is_wide(grad, x, weight, dx),
    )
    return dx


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, layout: torch.memory_format
) -> Tensor:
    """dW (C_out, C_in / groups, ...) under the rule "sign", float32."""
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    pixels, taps = grad.shape[0] * prod(grad.shape[2:]), prod(weight.shape[2:])
    narrow = geometry.groups > 1 and min(filters, channels) < _NARROW
    if narrow:  # 32 pixels side by side
        rows, columns, unroll = 1, min(32, _power(weight.shape[0] * channels)), 32
        tiles = blocks_of(weight.shape[0] * channels, columns)
    else:
        rows, columns, unroll = min(64, _power(filters)), min(64, _power(channels)), 8
        tiles = blocks_of(filters, rows) * blocks_of(channels, columns) * geometry.groups
    parts = max(1, min(_PARTS // (tiles * taps), blocks_of(pixels, 8 * unroll)))
    chunk = blocks_of(blocks_of(pixels, parts), unroll) * unroll
    dw = torch.empty((parts * (unroll if narrow else 1), *weight.shape), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        kernels.grad_weight_sign[(tiles, taps, parts)](
            *(grad, x, weight, dw),
            *(chunk, x.shape[0], geometry.groups, weight.shape[0] if narrow else filters, filters, channels),
            *(*sizes(x), *sizes(grad), *strides(grad), *strides(x), *strides(weight), dw.stride(0), *strides(dw[0])),
            *_constants(weight, geometry),
            NARROW=narrow,
            WIDE=_is_wide(grad, x, weight, dw),
            ROWS=rows,
            COLUMNS=columns,
            UNROLL=unroll,
            **Tile(rows, columns).options,
            **_FUSED,
        )
    return dw.sum(0).contiguous(memory_format=layout)


def _work(pixels: int, classes: int, columns: int, groups: int, inner: int) -> Work:
    narrow = groups > 1 and columns < _NARROW
    return Work(pixels, classes, columns * (groups if narrow else 1), 1 if narrow else groups, inner, narrow)


def _tiles(work: Work, source: Tensor) -> list[Tile]:
    """Tiles that suit the work, the heuristic's first; `source` is what the sum runs over, beside the weight."""
    if work.narrow:  # neighbours in memory are neighbours in a tile
        columns = min(32, _power(work.columns)) if source.stride(1) == 1 else 1
        return [Tile(pixels // columns, columns) for pixels in (512, 1024, 256)]
    columns, unroll = min(64, _power(work.columns)), 8
    while unroll > 1 and work.inner % unroll and work.inner < 8 * unroll:  # no more than an eighth of it idle
        unroll //= 2
    pixels, registers = min(512, 4096 // columns), 128 if columns == 64 else 168  # no more than the loop needs
    while pixels > 32 and work.programs(pixels, columns) < _ENOUGH:
        pixels //= 2
    return [
        Tile(pixels, columns, unroll, registers=registers),
        Tile(pixels, columns, unroll, registers=128 + 168 - registers),
        Tile(2 * pixels, columns, min(4, unroll), registers=168),
        Tile(max(32, pixels // 2), columns, unroll),
    ]


def _launch(kernel: Any, work: Work, tiles: list[Tile], *args: Any, **constants: Any) -> None:
    def grid(chosen: dict[str, Any]) -> tuple[int]:
        return (work.programs(chosen["PIXELS"], chosen["COLUMNS"]),)

    if not work.pixels:
        return
    with torch.cuda.device_of(args[0]):
        if _is_timed(args[0]):
            _timed(kernel, tuple(tiles))[grid](*args, **constants, **_FUSED)
        else:
            kernel[grid](*args, **constants, **tiles[0].constants, **tiles[0].options, **_FUSED)


def _is_timed(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.backends.cudnn.benchmark and not torch.cuda.is_current_stream_capturing()


@cache
def _timed(kernel: Any, tiles: tuple[Tile, ...]) -> Any:
    """The kernel on the fastest of the tiles; a single one is not timed."""
    configs = [triton.Config(tile.constants, **tile.options) for tile in dict.fromkeys(tiles)]
    own = ("x", "weight", "bias", "grad", "y", "dx", *tiles[0].constants)
    key = [name for name in kernel.arg_names if name not in own]
    kept = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    do_bench = partial(triton.testing.do_bench, warmup=5, rep=20)  # milliseconds
    return triton.autotune(configs, key, do_bench=do_bench, **kept)(kernel)


def _power(count: int) -> int:
    """The power of two that is no less."""
    return 1 << (count - 1).bit_length()


def _is_wide(*tensors: Tensor) -> bool:
    """Whether 32 bits are too few for an offset."""
    return any(sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) >= 1 << 31 for t in tensors)


def _constants(weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    stride, padding, dilation = constants(geometry)
    return *stride, *padding, *dilation, *lifted(weight.shape[2:], 1)


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

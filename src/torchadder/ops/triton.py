"""Run the operators on a GPU with Triton: choose the route, the tiles and the launch of each kernel.

Tensors may have any strides; the kernels (triton_kernels.py) get the geometry in three spatial axes. Activations are
float32, float16 or bfloat16 and keep their dtype; weights, accumulators and weight gradients are float32. Where Triton
cannot run, GPU tensors run on the plain-torch reference, with a warning. No GPU has run these kernels yet: they are
tested in Triton's interpreter and compiled for GPUs.

_tiles gives a few tiles, and the first one runs. Where torch.backends.cudnn.benchmark is on, Triton times them all on
the first call of each kind (shapes, strides, dtype, geometry) and keeps the fastest, on disk too. No result depends on
the choice: all tiles add up in one order.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import warnings
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry

OLDEST_TRITON = (3, 3)  # that compiles the kernels
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NARROW = 8  # a tile spans many groups where a group has fewer columns than this
_MIN_PROGRAMS = 264  # two for each multiprocessor of the largest GPUs
_FUSED = {"enable_fp_fusion": True}  # dX needs FADD.SAT and FFMA; Triton's default changes with 3.10
_MAX_PARTS = 1024  # programs that share the sums of one weight gradient


# The route


def runs(x: Tensor) -> bool:
    """Return True where the Triton kernels compute on this tensor."""
    return x.is_cuda and x.dtype in DTYPES and route() == "triton"


@cache
def route() -> str:
    """Return "triton", or "reference" with a warning where Triton cannot run."""
    reason = problem()
    if reason is None:
        return "triton"
    warnings.warn(f"no GPU kernels: {reason}; adder layers run on a slow reference", RuntimeWarning, stacklevel=2)
    return "reference"


def problem() -> str | None:
    """Return the reason why Triton cannot run here, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old: expected 3.3 or later"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "Triton finds no C compiler"
    return None


def kernels() -> ModuleType:
    """Return the module of the kernels, which needs Triton."""
    from . import triton_kernels

    return triton_kernels


# Tiles


class Tile(NamedTuple):
    """Hold the size of a program's tile: pixels by columns, computed by `warps` warps, `unroll` terms at a time."""

    pixels: int
    columns: int
    unroll: int = 1
    warps: int = 4
    registers: int = 128  # limit for each thread

    @property
    def constants(self) -> dict[str, int]:
        return {"PIXELS": self.pixels, "COLUMNS": self.columns, "UNROLL": self.unroll}

    @property
    def options(self) -> dict[str, int]:
        """Return the compiler's options; only that for NVIDIA has a limit of registers."""
        limit = {} if torch.version.hip else {"maxnreg": self.registers}
        return {"num_warps": self.warps, **limit}


class Work(NamedTuple):
    """Hold the work that tiles divide: (pixels x classes) by (columns x groups) results."""

    pixels: int  # of one class: dX has a class of pixels for each position within the stride, Y has one
    classes: int
    columns: int  # of one group, or of all where narrow
    groups: int
    inner: int  # terms of a sum for each filter tap
    narrow: bool  # a tile spans many groups

    def programs(self, pixels: int, columns: int) -> int:
        return blocks_of(self.pixels, pixels) * self.classes * blocks_of(self.columns, columns) * self.groups


def _work(pixels: int, classes: int, columns: int, groups: int, inner: int) -> Work:
    narrow = groups > 1 and columns < _NARROW
    return Work(pixels, classes, columns * (groups if narrow else 1), 1 if narrow else groups, inner, narrow)


def _tiles(work: Work, source: Tensor) -> list[Tile]:
    """Return tiles that suit the work, the best guess first; the sums run over `source` and the weight."""
    if work.narrow:  # columns that are adjacent in memory are adjacent in a tile
        columns = min(32, _next_power_of_two(work.columns)) if source.stride(1) == 1 else 1
        return [Tile(pixels // columns, columns) for pixels in (512, 1024, 256)]
    columns, unroll = min(64, _next_power_of_two(work.columns)), 8
    # At most an eighth of the unrolled terms may be idle.
    while unroll > 1 and work.inner % unroll and work.inner < 8 * unroll:
        unroll //= 2
    pixels, registers = min(512, 4096 // columns), 128 if columns == 64 else 168  # as few as the loop needs
    while pixels > 32 and work.programs(pixels, columns) < _MIN_PROGRAMS:
        pixels //= 2
    return [
        Tile(pixels, columns, unroll, registers=registers),
        Tile(pixels, columns, unroll, registers=128 + 168 - registers),
        Tile(2 * pixels, columns, min(4, unroll), registers=168),
        Tile(max(32, pixels // 2), columns, unroll),
    ]


def _next_power_of_two(count: int) -> int:
    """Return the least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def blocks_of(count: int, size: int) -> int:
    """Return the number of blocks of `size` that hold `count`."""
    return -(-count // size)


# Operators


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recenter: bool, layout: torch.memory_format
) -> Tensor:
    """Compute Y (N, C_out, ...), of x's dtype; weight and bias are float32."""
    if recenter:
        constant = weight.abs().flatten(1).sum(1)
        bias = constant if bias is None else bias + constant
    y = torch.empty(geometry.output_shape(x, weight), dtype=x.dtype, device=x.device, memory_format=layout)
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    pixels = y.shape[0] * prod(y.shape[2:])
    work = _work(pixels, 1, filters, geometry.groups, channels)
    _launch(
        kernels().forward,
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
    """Compute dX (N, C_in, ...), of x's dtype; rule is "hardtanh" or "sign"."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    class_pixels = x.shape[0] * prod(blocks_of(*axis) for axis in zip(x.shape[2:], geometry.stride, strict=True))
    work = _work(class_pixels, prod(geometry.stride), channels, geometry.groups, filters)
    _launch(
        kernels().grad_input,
        work,
        _tiles(work, grad),
        *(grad, x, weight, dx),
        *(class_pixels, x.shape[0], work.groups, work.columns, channels, filters),
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
    """Compute dW (C_out, C_in / groups, ...) under the rule "sign", float32."""
    filters, channels = weight.shape[0] // geometry.groups, weight.shape[1]
    pixels, taps = grad.shape[0] * prod(grad.shape[2:]), prod(weight.shape[2:])
    narrow = geometry.groups > 1 and min(filters, channels) < _NARROW
    if narrow:  # a program computes 32 pixels at a time
        rows, columns, unroll = 1, min(32, _next_power_of_two(weight.shape[0] * channels)), 32
        tiles = blocks_of(weight.shape[0] * channels, columns)
    else:
        rows, columns, unroll = min(64, _next_power_of_two(filters)), min(64, _next_power_of_two(channels)), 8
        tiles = blocks_of(filters, rows) * blocks_of(channels, columns) * geometry.groups
    parts = max(1, min(_MAX_PARTS // (tiles * taps), blocks_of(pixels, 8 * unroll)))
    chunk = blocks_of(blocks_of(pixels, parts), unroll) * unroll
    dw = torch.empty((parts * (unroll if narrow else 1), *weight.shape), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        kernels().grad_weight_sign[(tiles, taps, parts)](
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
    """Return the kernel with the fastest of the tiles; a single tile is not timed."""
    import triton
    import triton.testing

    configs = [triton.Config(tile.constants, **tile.options) for tile in dict.fromkeys(tiles)]
    unkeyed = ("x", "weight", "bias", "grad", "y", "dx", *tiles[0].constants)
    key = [name for name in kernel.arg_names if name not in unkeyed]
    caching = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    do_bench = partial(triton.testing.do_bench, warmup=5, rep=20)  # milliseconds
    return triton.autotune(configs, key, do_bench=do_bench, **caching)(kernel)


# Arguments of the kernels: geometry, sizes and strides in three spatial axes

AXES = 3


def three_axes(values: Sequence[int], missing: int) -> tuple[int, ...]:
    """Return one number for each of three axes; `missing` stands for the first ones."""
    return (missing,) * (AXES - len(values)) + tuple(values)


def sizes(image: Tensor) -> tuple[int, ...]:
    """Return (D, H, W) of an (N, C, ...) or (C_out, C_in, ...) tensor."""
    return three_axes(image.shape[2:], 1)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Return five strides: of the first two axes and of three spatial ones."""
    return *tensor.stride()[:2], *three_axes(tensor.stride()[2:], 0)


def constants(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding and dilation of three axes."""
    return three_axes(geometry.stride, 1), three_axes(geometry.padding, 0), three_axes(geometry.dilation, 1)


def _is_wide(*tensors: Tensor) -> bool:
    """Return True where an offset into one of the tensors needs 64 bits."""
    return any(sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) >= 1 << 31 for t in tensors)


def _constants(weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    stride, padding, dilation = constants(geometry)
    return *stride, *padding, *dilation, *three_axes(weight.shape[2:], 1)

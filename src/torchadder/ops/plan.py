"""What a call of an operator needs beside its tensors' addresses, checked and made once for each kind of call.

Shapes, strides and dtypes decide everything here, and a network has few kinds of call: on a small layer looking the
plan up costs a tenth of making it.
"""

import ctypes
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchadder import kernels

from .geometry import NARROW, Geometry

CHANNELS_LAST = {0: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
_SMALL = 16 * 1024  # floats of all images: torch's own conversions would cost as much as the kernel


class Made(NamedTuple):
    """How a kernel's result lies, and the format that it must have in the end (None: it has it)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    then: torch.memory_format | None


class Plan(NamedTuple):
    """`layout` is the memory format of results that lie like the input, `weight_layout` of those like the weight.

    The rest is for the native kernels: tensors that they cannot take as they are need a conversion (None: they can).
    """

    native: bool
    layout: torch.memory_format
    weight_layout: torch.memory_format
    shape: Any = None  # a ctypes reference to a kernels.Convolution
    input_format: torch.memory_format | None = None
    weight_format: torch.memory_format | None = None
    grad_format: torch.memory_format | None = None
    output: Made | None = None
    grad_input: Made | None = None


_plans: dict[tuple[object, ...], Plan] = {}
_MOST_KEPT = 4096


def plan_of(
    geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> Plan:
    """The plan of a call, whose tensors are on one device. Raises what check raises."""
    key = (
        geometry,
        x.shape,
        x.stride(),
        x.dtype,
        x.is_cpu,
        weight.shape,
        weight.stride(),
        weight.dtype,
        None if bias is None else (bias.shape, bias.dtype),
        None if grad is None else (grad.shape, grad.stride(), grad.dtype),
    )
    plan = _plans.get(key)
    if plan is None:
        check(geometry, x, weight, bias, grad)
        if len(_plans) >= _MOST_KEPT:
            _plans.clear()
        plan = _plans[key] = _make(geometry, x, weight, grad)
    return plan


def check(
    geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> None:
    """Raise what geometry.check raises, and TypeError for a dtype that is no floating-point one."""
    if x.dtype not in (torch.float32, torch.float64, *NARROW):
        raise TypeError(f"{x.dtype} input: adder layers compute in float32; cast input and weight with .float()")
    geometry.check(x, weight, bias, grad, wide_weights=True)


def memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """torch's choice for a convolution: channels last if the input's or the weight's strides are, else contiguous."""
    last = x.dim() > 2 and (is_channels_last(x) or is_channels_last(weight))
    return CHANNELS_LAST[x.dim() - 2] if last else torch.contiguous_format


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the strides say so, as in torch: one channel or one pixel is dense either way, differently strided."""
    if not tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2]):
        return False
    outer = 1  # extent of what is inside of an axis, beginning with the channels
    for axis in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if tensor.stride(axis) < outer:
            return False
        outer = tensor.stride(axis) * tensor.shape[axis]
    return tensor.stride(0) > tensor.stride(1)


def _make(geometry: Geometry, x: Tensor, weight: Tensor, grad: Tensor | None) -> Plan:
    if geometry.dims == 1:  # runs on images of height 1, which have plans of their own
        return Plan(False, torch.contiguous_format, torch.contiguous_format)
    last = CHANNELS_LAST[geometry.dims]
    layout, weight_layout = memory_format(x, weight), memory_format(weight, weight)
    if x.dtype != torch.float32 or not x.is_cpu:
        return Plan(False, layout, weight_layout)
    output_shape = geometry.output_shape(x, weight)
    floats = x.numel() + prod(output_shape)
    first = layout is torch.contiguous_format and floats <= _SMALL
    images = torch.contiguous_format if first else last
    weight_is_last = not weight.is_contiguous() and weight.is_contiguous(memory_format=last)
    return Plan(
        True,
        layout,
        weight_layout,
        shape=_native_shape(geometry, x, weight, output_shape, weight_is_last, first),
        input_format=_unless(x, images),
        grad_format=None if grad is None else _unless(grad, images),
        weight_format=None if weight_is_last else _unless(weight, torch.contiguous_format),
        output=_made(output_shape, layout, images),
        grad_input=_made(x.shape, layout, images),
    )


def _native_shape(
    geometry: Geometry, x: Tensor, weight: Tensor, output_shape: tuple[int, ...], weight_is_last: bool, first: bool
) -> Any:
    lacking = 3 - geometry.dims
    ones, zeros = (1,) * lacking, (0,) * lacking
    convolution = kernels.Convolution(
        *(x.shape[0], x.shape[1], weight.shape[0], geometry.groups),
        *((*ones, *axes) for axes in (x.shape[2:], output_shape[2:], weight.shape[2:], geometry.stride)),
        *((*zeros, *geometry.padding), (*ones, *geometry.dilation)),
        *(int(weight_is_last), int(first)),
    )
    return ctypes.byref(convolution)


def _unless(tensor: Tensor, layout: torch.memory_format) -> torch.memory_format | None:
    return None if tensor.is_contiguous(memory_format=layout) else layout


def _made(shape: tuple[int, ...], layout: torch.memory_format, images: torch.memory_format) -> Made:
    """A kernel writes `images`; where that and `layout` are the same numbers in the same order, only strides differ."""
    one = shape[1] == 1 or all(size == 1 for size in shape[2:])
    like = torch.empty(shape, memory_format=layout if one else images, device="meta")
    return Made(tuple(shape), like.stride(), None if one or images is layout else layout)

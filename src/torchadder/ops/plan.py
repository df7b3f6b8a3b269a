"""Plan a call of an operator: check it, and choose memory formats, once for each combination of shapes and strides.

Geometry, shapes, strides and dtypes decide everything here, and a network has few combinations: on a small layer
finding the plan in the cache costs a tenth of making it.
"""

import ctypes
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchadder import kernels

from .geometry import CHANNELS_LAST, NARROW, Geometry, memory_format

_SMALL = 16 * 1024  # elements: converting images that have fewer would take as long as the kernel


class ResultLayout(NamedTuple):
    """Hold the layout that a kernel writes a result in, and the format to convert it to (None: as it is)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    final_format: torch.memory_format | None


class CallPlan(NamedTuple):
    """Hold the plan of a call.

    The fields after weight_layout are for the native kernels. A `..._format` is the memory format that the tensor must
    be converted to before the kernel takes it (None: as it is).
    """

    native: bool  # the native CPU kernels compute it
    layout: torch.memory_format  # of the output and of dX
    weight_layout: torch.memory_format  # of dW
    shape: Any = None  # a ctypes reference to a kernels.Convolution
    input_format: torch.memory_format | None = None
    weight_format: torch.memory_format | None = None
    grad_format: torch.memory_format | None = None
    output: ResultLayout | None = None
    grad_input: ResultLayout | None = None


_plans: dict[tuple[object, ...], CallPlan] = {}
_MAX_PLANS = 4096  # then all are dropped, so that ever new shapes do not fill the memory


def plan_call(
    geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> CallPlan:
    """Return the plan of a call whose tensors are on one device. Raise what `check` raises."""
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
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        plan = _plans[key] = _make_plan(geometry, x, weight, grad)
    return plan


def check(
    geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> None:
    """Raise what Geometry.check raises, and TypeError for a dtype that is not a floating-point one."""
    if x.dtype not in (torch.float32, torch.float64, *NARROW):
        raise TypeError(f"{x.dtype} input: adder layers compute in float32; cast input and weight with .float()")
    geometry.check(x, weight, bias, grad, wide_weights=True)


def _make_plan(geometry: Geometry, x: Tensor, weight: Tensor, grad: Tensor | None) -> CallPlan:
    if geometry.dims == 1:  # the caller repeats the call on images of height 1, with a plan of their own
        return CallPlan(False, torch.contiguous_format, torch.contiguous_format)
    last = CHANNELS_LAST[geometry.dims]
    layout, weight_layout = memory_format(x, weight), memory_format(weight, weight)
    if x.dtype != torch.float32 or not x.is_cpu:
        return CallPlan(False, layout, weight_layout)
    output_shape = geometry.output_shape(x, weight)
    elements = x.numel() + prod(output_shape)
    channels_first = layout is torch.contiguous_format and elements <= _SMALL
    images = torch.contiguous_format if channels_first else last
    weight_is_last = not weight.is_contiguous() and weight.is_contiguous(memory_format=last)
    return CallPlan(
        True,
        layout,
        weight_layout,
        shape=_native_shape(geometry, x, weight, output_shape, weight_is_last, channels_first),
        input_format=_conversion(x, images),
        grad_format=None if grad is None else _conversion(grad, images),
        weight_format=None if weight_is_last else _conversion(weight, torch.contiguous_format),
        output=_result_layout(output_shape, layout, images),
        grad_input=_result_layout(x.shape, layout, images),
    )


def _native_shape(
    geometry: Geometry,
    x: Tensor,
    weight: Tensor,
    output_shape: tuple[int, ...],
    weight_is_last: bool,
    channels_first: bool,
) -> Any:
    missing = 3 - geometry.dims
    ones, zeros = (1,) * missing, (0,) * missing
    convolution = kernels.Convolution(
        *(x.shape[0], x.shape[1], weight.shape[0], geometry.groups),
        *((*ones, *axes) for axes in (x.shape[2:], output_shape[2:], weight.shape[2:], geometry.stride)),
        *((*zeros, *geometry.padding), (*ones, *geometry.dilation)),
        *(int(weight_is_last), int(channels_first)),
    )
    return ctypes.byref(convolution)


def _conversion(tensor: Tensor, layout: torch.memory_format) -> torch.memory_format | None:
    """Return the format that the tensor must be converted to, or None."""
    return None if tensor.is_contiguous(memory_format=layout) else layout


def _result_layout(shape: tuple[int, ...], layout: torch.memory_format, images: torch.memory_format) -> ResultLayout:
    """Return the layout of a result that a kernel writes in the format `images` and the caller gets in `layout`.

    With one channel or one pixel both formats are the same numbers in the same order: only the strides differ.
    """
    one = shape[1] == 1 or all(size == 1 for size in shape[2:])
    like = torch.empty(shape, memory_format=layout if one else images, device="meta")
    return ResultLayout(tuple(shape), like.stride(), None if one or images is layout else layout)

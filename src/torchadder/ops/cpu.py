"""The CPU backend: float32 tensors, channels last in memory, handed to the native library as pointers."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from .geometry import Conv2dGeometry


def can_run(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Conv2dGeometry,
    recenter: bool,
    layout: torch.memory_format,
) -> Tensor:
    """Y of torchadder::adder_conv2d."""
    x, weight = _channels_last(x), _dense(weight)
    prepared = _prepare(x.shape, weight.shape, geometry, not weight.is_contiguous())
    y = _empty(prepared.output_shape, layout)
    bias_pointer = None if bias is None else (bias := bias.contiguous()).data_ptr()
    pointers = (x.data_ptr(), weight.data_ptr(), bias_pointer, y.data_ptr())
    _call(kernels.library().torchadder_forward_f32, prepared, *pointers, recenter)
    return y.contiguous(memory_format=layout)


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """dX of torchadder::adder_conv2d_grad_input; rule is "hardtanh" or "sign"."""
    grad, x, weight = _channels_last(grad), _channels_last(x), _dense(weight)
    prepared = _prepare(x.shape, weight.shape, geometry, not weight.is_contiguous())
    dx = _empty(x.shape, layout)
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr())
    _call(kernels.library().torchadder_grad_input_f32, prepared, *pointers, rule == "sign")
    return dx.contiguous(memory_format=layout)


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, layout: torch.memory_format
) -> Tensor:
    """dW of torchadder::adder_conv2d_grad_weight under the rule "sign"."""
    grad, x, weight = _channels_last(grad), _channels_last(x), _dense(weight)
    prepared = _prepare(x.shape, weight.shape, geometry, not weight.is_contiguous())
    dw = torch.empty_like(weight, memory_format=torch.preserve_format)
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dw.data_ptr())
    _call(kernels.library().torchadder_grad_weight_sign_f32, prepared, *pointers)
    return dw.contiguous(memory_format=layout)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    """Memory for a channels-last result; with the strides of `layout` where both formats are one and the same."""
    same = shape[1] == 1 or shape[2] * shape[3] == 1
    return torch.empty(shape, memory_format=layout if same else torch.channels_last)


def _dense(weight: Tensor) -> Tensor:
    """The weight itself if it lies as (C_out, C_in, kh, kw) or (C_out, kh, kw, C_in), else a copy."""
    if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous()


class _Prepared(NamedTuple):
    """What a call needs beside the pointers, kept between calls: most of a small layer's time would go here."""

    shape: Any  # a ctypes reference to a Conv2dShape
    output_shape: tuple[int, int, int, int]


@functools.lru_cache(maxsize=1024)
def _prepare(x: torch.Size, weight: torch.Size, geometry: Conv2dGeometry, weight_channels_last: bool) -> _Prepared:
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    h_out, w_out = geometry.output_size(x[2:], weight[2:])
    sizes = (x[0], x[1], x[2], x[3], weight[0], h_out, w_out, groups, weight[2], weight[3])
    shape = kernels.Conv2dShape(*sizes, sh, sw, ph, pw, dh, dw, int(weight_channels_last))
    return _Prepared(ctypes.byref(shape), (x[0], weight[0], h_out, w_out))


def _call(function: Callable[..., int], prepared: _Prepared, *arguments: int | None) -> None:
    if function(prepared.shape, *arguments, kernels.threads()):
        raise RuntimeError(f"{function.__name__}: {kernels.library().torchadder_last_error().decode()}")

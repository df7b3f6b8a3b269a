"""The CPU backend: float32 tensors, channels last in memory, handed to the native library as pointers."""

import ctypes
import functools

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
    y = torch.empty(geometry.output_shape(x, weight), memory_format=torch.channels_last)
    shape = _shape(x.shape, weight.shape, geometry, _is_channels_last(weight))
    bias = None if bias is None else bias.contiguous()
    arguments = (_address(x), _address(weight), _address(bias), _address(y), int(recenter))
    _call("forward_f32", shape, *arguments)
    return y.contiguous(memory_format=layout)


def grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, rule: str, layout: torch.memory_format
) -> Tensor:
    """dX of torchadder::adder_conv2d_grad_input; rule is "hardtanh" or "sign"."""
    grad, x, weight = _channels_last(grad), _channels_last(x), _dense(weight)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    shape = _shape(x.shape, weight.shape, geometry, _is_channels_last(weight))
    arguments = (_address(grad), _address(x), _address(weight), _address(dx), int(rule == "sign"))
    _call("grad_input_f32", shape, *arguments)
    return dx.contiguous(memory_format=layout)


def grad_weight_sign(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, layout: torch.memory_format
) -> Tensor:
    """dW of torchadder::adder_conv2d_grad_weight under the rule "sign"."""
    grad, x, weight = _channels_last(grad), _channels_last(x), _dense(weight)
    dw = torch.empty_like(weight, memory_format=torch.preserve_format)
    shape = _shape(x.shape, weight.shape, geometry, _is_channels_last(weight))
    _call("grad_weight_sign_f32", shape, _address(grad), _address(x), _address(weight), _address(dw))
    return dw.contiguous(memory_format=layout)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous()


def _dense(weight: Tensor) -> Tensor:
    """The weight as it is if its order is (C_out, C_in, kh, kw) or (C_out, kh, kw, C_in), else a copy in the first."""
    if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=1024)
def _shape(
    x: torch.Size, weight: torch.Size, geometry: Conv2dGeometry, weight_channels_last: bool
) -> kernels.Conv2dShape:
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    h_out, w_out = geometry.output_size(x[2:], weight[2:])
    sizes = (x[0], x[1], x[2], x[3], weight[0], h_out, w_out, groups, weight[2], weight[3])
    return kernels.Conv2dShape(*sizes, sh, sw, ph, pw, dh, dw, int(weight_channels_last))


def _call(name: str, shape: kernels.Conv2dShape, *arguments: int | None) -> None:
    library = kernels.library()
    if getattr(library, f"torchadder_{name}")(ctypes.byref(shape), *arguments, kernels.threads()):
        raise RuntimeError(f"torchadder_{name}: {library.torchadder_last_error().decode()}")

"""The CPU backend: float32 tensors, handed to the native library as pointers, in the order that the plan says."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from torchadder import kernels

from .plan import CHANNELS_LAST, Plan


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, recenter: bool) -> Tensor:
    """Y of torchadder::adder_conv."""
    if plan.input_format is not None:
        x = _laid_out(x, plan.input_format)
    if plan.weight_format is not None:
        weight = weight.contiguous()
    shape, stride, then = plan.output  # type: ignore[misc]
    y = torch.empty_strided(shape, stride)
    b = None if bias is None else (bias := bias.contiguous()).data_ptr()
    function = kernels.library().torchadder_forward_f32
    if function(plan.shape, x.data_ptr(), weight.data_ptr(), b, y.data_ptr(), recenter, kernels.threads()):
        raise _error(function)
    return y if then is None else _laid_out(y, then)


def grad_input(grad: Tensor, x: Tensor, weight: Tensor, plan: Plan, rule: str) -> Tensor:
    """dX of torchadder::adder_conv_grad_input; rule is "hardtanh" or "sign"."""
    grad, x, weight = _converted(grad, x, weight, plan)
    shape, stride, then = plan.grad_input  # type: ignore[misc]
    dx = torch.empty_strided(shape, stride)
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr())
    function = kernels.library().torchadder_grad_input_f32
    if function(plan.shape, *pointers, rule == "sign", kernels.threads()):
        raise _error(function)
    return dx if then is None else _laid_out(dx, then)


def grad_weight_sign(grad: Tensor, x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """dW of torchadder::adder_conv_grad_weight under the rule "sign"."""
    grad, x, weight = _converted(grad, x, weight, plan)
    dw = torch.empty_like(weight, memory_format=torch.preserve_format)
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dw.data_ptr())
    function = kernels.library().torchadder_grad_weight_sign_f32
    if function(plan.shape, *pointers, kernels.threads()):
        raise _error(function)
    return dw.contiguous(memory_format=plan.weight_layout)


def _converted(grad: Tensor, x: Tensor, weight: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    formats = (plan.grad_format, plan.input_format, plan.weight_format)
    tensors = zip((grad, x, weight), formats, strict=True)
    converted = (t if layout is None else _laid_out(t, layout) for t, layout in tensors)
    return tuple(converted)  # type: ignore[return-value]


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """tensor.contiguous(memory_format=layout); channels first to last and back in a fraction of torch's time."""
    channels, pixels = tensor.shape[1], prod(tensor.shape[2:])
    if layout is not torch.contiguous_format and tensor.is_contiguous():
        rows, columns = channels, pixels
    elif layout is torch.contiguous_format and tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2]):
        rows, columns = pixels, channels
    else:
        return tensor.contiguous(memory_format=layout)
    result = torch.empty(tensor.shape, memory_format=layout)
    function = kernels.library().torchadder_transpose_f32
    if function(tensor.data_ptr(), result.data_ptr(), tensor.shape[0], rows, columns, kernels.threads()):
        raise _error(function)
    return result


def _error(function: Any) -> RuntimeError:
    return RuntimeError(f"{function.__name__}: {kernels.library().torchadder_last_error().decode()}")

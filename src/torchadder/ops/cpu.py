"""Run the native CPU kernels: pass float32 tensors as pointers, converted to the memory formats of the call's plan."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from torchadder import kernels

from .geometry import CHANNELS_LAST
from .plan import CallPlan


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: CallPlan, recenter: bool, numbers: str = "float32"
) -> Tensor:
    """Compute Y of torchadder::adder_conv; numbers="int8" takes one group."""
    if plan.input_format is not None:
        x = _to_format(x, plan.input_format)
    if plan.weight_format is not None:
        weight = weight.contiguous()
    shape, stride, final_format = plan.output  # type: ignore[misc]
    y = torch.empty_strided(shape, stride, dtype=torch.float32, device="cpu")
    b = None if bias is None else (bias := bias.contiguous()).data_ptr()
    library = kernels.library()
    function = library.torchadder_forward_u8 if numbers == "int8" else library.torchadder_forward_f32
    if function(plan.shape, x.data_ptr(), weight.data_ptr(), b, y.data_ptr(), recenter, kernels.threads()):
        raise _error(function)
    return y if final_format is None else _to_format(y, final_format)


def grad_input(grad: Tensor, x: Tensor, weight: Tensor, plan: CallPlan, rule: str, numbers: str = "float32") -> Tensor:
    """Compute dX of torchadder::adder_conv_grad_input; rule is "hardtanh" or "sign".

    numbers="int8" takes one group and "hardtanh".
    """
    grad, x, weight = _convert(grad, x, weight, plan)
    shape, stride, final_format = plan.grad_input  # type: ignore[misc]
    dx = torch.empty_strided(shape, stride, dtype=torch.float32, device="cpu")
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr())
    function: Any
    if numbers == "int8":
        function = kernels.library().torchadder_grad_input_i16
        failed = function(plan.shape, *pointers, kernels.threads())
    else:
        function = kernels.library().torchadder_grad_input_f32
        failed = function(plan.shape, *pointers, rule == "sign", kernels.threads())
    if failed:
        raise _error(function)
    return dx if final_format is None else _to_format(dx, final_format)


def grad_weight_sign(grad: Tensor, x: Tensor, weight: Tensor, plan: CallPlan) -> Tensor:
    """Compute dW of torchadder::adder_conv_grad_weight under the rule "sign"."""
    grad, x, weight = _convert(grad, x, weight, plan)
    dw = torch.empty_like(weight, memory_format=torch.preserve_format)
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dw.data_ptr())
    function = kernels.library().torchadder_grad_weight_sign_f32
    if function(plan.shape, *pointers, kernels.threads()):
        raise _error(function)
    return dw.contiguous(memory_format=plan.weight_layout)


def _convert(grad: Tensor, x: Tensor, weight: Tensor, plan: CallPlan) -> tuple[Tensor, Tensor, Tensor]:
    formats = (plan.grad_format, plan.input_format, plan.weight_format)
    tensors = zip((grad, x, weight), formats, strict=True)
    converted = (t if layout is None else _to_format(t, layout) for t, layout in tensors)
    return tuple(converted)  # type: ignore[return-value]


def _to_format(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Return tensor.contiguous(memory_format=layout).

    The native transpose between channels first and last takes a fraction of torch's time.
    """
    channels, pixels = tensor.shape[1], prod(tensor.shape[2:])
    if layout is not torch.contiguous_format and tensor.is_contiguous():
        rows, columns = channels, pixels
    elif layout is torch.contiguous_format and tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2]):
        rows, columns = pixels, channels
    else:
        return tensor.contiguous(memory_format=layout)
    result = torch.empty(tensor.shape, dtype=torch.float32, device="cpu", memory_format=layout)
    function = kernels.library().torchadder_transpose_f32
    if function(tensor.data_ptr(), result.data_ptr(), tensor.shape[0], rows, columns, kernels.threads()):
        raise _error(function)
    return result


def _error(function: Any) -> RuntimeError:
    return RuntimeError(f"{function.__name__}: {kernels.library().torchadder_last_error().decode()}")

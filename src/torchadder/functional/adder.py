"""Adder convolutions as functions: the operator and its gradient rule.

The rule is the method's own choice and not the derivative of the L1 distance (paper, section 3.2):

    dW[o, k] = sum over positions of (X - W[o, k]) * dY[o]               "full"
    dX[k]    = sum over o of HardTanh(W[o, k] - X[k]) * dY[o]            "hardtanh"

"sign" is the true derivative in both, the ablation. Input and weight are all that is kept for the backward pass.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops.geometry import Conv2dGeometry
from ..ops.registration import INPUT_RULES, WEIGHT_RULES


class GradientRule(NamedTuple):
    """Which gradient reaches the weight ("full" | "sign") and the input ("hardtanh" | "sign" | "full")."""

    weight: Literal["full", "sign"] = "full"
    input: Literal["hardtanh", "sign", "full"] = "hardtanh"

    def check(self) -> None:
        """Raise ValueError for a rule that does not exist."""
        for what, value, allowed in (
            ("weight", self.weight, WEIGHT_RULES),
            ("input", self.input, INPUT_RULES),
        ):
            if value not in allowed:
                raise ValueError(f"grad rule of the {what} is {value!r}: choose one of {', '.join(allowed)}")


DEFAULT_RULE = GradientRule()


class _AdderConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Conv2dGeometry,
        rule: GradientRule,
        recenter: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.rule = geometry, rule
        return ops.adder_conv2d(x, weight, bias, *geometry, recenter)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = ops.adder_conv2d_grad_input(grad, x, weight, *ctx.geometry, ctx.rule.input)
        if ctx.needs_input_grad[1]:
            dw = ops.adder_conv2d_grad_weight(grad, x, weight, *ctx.geometry, ctx.rule.weight)
        if ctx.needs_input_grad[2]:
            db = grad.sum((0, 2, 3))
        return dx, dw, db, None, None, None


def adder_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = False,
) -> Tensor:
    """2-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv2d.

        Y[n, o, i, j] = bias[o] - sum_{c, a, b} |X[n, c, i*s + a, j*s + b] - W[o, c, a, b]|     (eq. 2)

    Shapes: input (N, C_in, H, W) or (C_in, H, W), weight (C_out, C_in / groups, kh, kw), bias (C_out,), all
    float32 (float64 and other devices run on a slow reference) -> (N, C_out, H_out, W_out) as for conv2d. A padded
    position holds 0 and contributes -|W|. `padding` may be "valid" or "same". recenter=True adds sum |W| of each
    filter, a constant that a following normalisation absorbs: padding then contributes 0 and outputs stay small.
    The gradients are those of `grad` and leave that constant out. Under autocast it computes in float32.

    Raises ValueError for shapes and options, TypeError for dtypes; the message names the value.
    """
    if _autocast_is_on(input):
        with torch.autocast(input.device.type, enabled=False):
            x, w, b = (_widened(t) for t in (input, weight, bias))
            return adder_conv2d(x, w, b, stride, padding, dilation, groups, grad=grad, recenter=recenter)  # type: ignore[arg-type]
    if input.dim() == 3:
        batched = adder_conv2d(
            input[None], weight, bias, stride, padding, dilation, groups, grad=grad, recenter=recenter
        )
        return batched[0]
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        input, padding = _pad_by_name(input, weight, padding, stride, dilation)
    geometry = Conv2dGeometry(stride, _pair(padding), dilation, groups)
    if grad is not DEFAULT_RULE:
        grad.check()
    if not torch.is_grad_enabled():
        return ops.adder_conv2d(input, weight, bias, *geometry, recenter)
    return _AdderConv2d.apply(input, weight, bias, geometry, grad, recenter)


def adder_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = False,
) -> Tensor:
    """Fully connected layer by negative L1 distance: Y[..., o] = bias[o] - sum_k |X[..., k] - W[o, k]|.

    Shapes: input (..., K), weight (C_out, K), bias (C_out,), float32 -> (..., C_out), as
    torch.nn.functional.linear. Gradients, `recenter` and errors as in adder_conv2d.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, K)")
    if min(weight.shape) < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: every size must be at least 1")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (..., {weight.shape[1]})")
    pixels = input.reshape(-1, weight.shape[1], 1, 1)
    y = adder_conv2d(pixels, weight[:, :, None, None], bias, grad=grad, recenter=recenter)
    return y.view(*input.shape[:-1], weight.shape[0])


def _autocast_is_on(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _widened(tensor: Tensor | None) -> Tensor | None:
    """What autocast has narrowed, back in float32: the outputs are too large for 16 bits."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value) * (2 if len(value) == 1 else 1)
    if len(values) != 2:
        raise ValueError(f"{values} has {len(values)} values: expected one or two")
    if not all(isinstance(number, int | torch.SymInt) for number in values):
        raise TypeError(f"{values}: expected whole numbers")
    return values


def _pad_by_name(
    x: Tensor, weight: Tensor, name: str, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, int | tuple[int, int]]:
    """Symmetric part as padding, the odd rest as explicit zeros: a padded position is a zero either way."""
    if name == "valid":
        return x, 0
    if name != "same":
        raise ValueError(f"padding is {name!r}: expected numbers, 'same' or 'valid'")
    if stride != (1, 1):
        raise ValueError(f"padding='same' is not defined for stride {stride}: give numbers")
    if x.dim() != 4 or weight.dim() != 4:
        return x, 0  # which the operator refuses
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(size % 2 for size in total):
        x = torch.nn.functional.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)

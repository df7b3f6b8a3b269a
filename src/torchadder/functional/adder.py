"""Adder convolutions as functions: the operator and its gradient rule.

The rule is the method's own choice and not the derivative of the L1 distance (paper, section 3.2):

    dW[o, k] = sum over positions of (X - W[o, k]) * dY[o]               "full"
    dX[k]    = sum over o of HardTanh(W[o, k] - X[k]) * dY[o]            "hardtanh"

"sign" is the true derivative in both, the ablation. Input and weight are all that is kept for the backward pass.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchadder import ops
from torchadder.ops.geometry import NARROW, Geometry, by_axis
from torchadder.ops.registration import INPUT_RULES, WEIGHT_RULES

from . import autocast
from . import padding as paddings


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


def _plainly(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _AdderConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        rule: GradientRule,
        recenter: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = geometry, rule
        return ops.forward(x, weight, bias, geometry, recenter)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad)


_apply_straight = super(torch.autograd.Function, _AdderConv).apply  # apply() less its precautions


class _TransformedAdderConv(torch.autograd.Function):
    """The same for torch.func's transforms, which want the context apart and pay for it on every call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        rule: GradientRule,
        recenter: bool,
    ) -> Tensor:
        return ops.adder_conv(x, weight, bias, geometry, recenter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, geometry, rule, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.options = geometry, rule

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad, Once.apply)


class Once(torch.autograd.Function):
    """Once.apply(function, ...) = function(...), not to be differentiated: once_differentiable for torch.func too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("the gradient of this layer follows a rule, which has no derivative")


def _gradients(ctx: Any, grad: Tensor, call: Callable[..., Any] = _plainly) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    geometry, rule = ctx.options
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = call(ops.adder_conv_grad_input, grad, x, weight, geometry, rule.input)
    if ctx.needs_input_grad[1]:
        dw = call(ops.adder_conv_grad_weight, grad, x, weight, geometry, rule.weight)
    if ctx.needs_input_grad[2]:
        db = grad.sum((0, *range(2, grad.dim())), dtype=weight.dtype)
    return dx, dw, db, None, None, None


def _of_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad, Once.apply)[:3], *[None] * 7


def _context_of_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, stride, padding, dilation, groups, _, of_weight, of_input = inputs
    ctx.save_for_backward(x, weight)
    ctx.options = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups), GradientRule(of_weight, of_input)


torch.library.register_autograd("torchadder::adder_conv", _of_operator, setup_context=_context_of_operator)


def adder_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = False,
) -> Tensor:
    """1-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv1d.

    Shapes: input (N, C_in, L) or (C_in, L), weight (C_out, C_in / groups, kl), bias (C_out,) -> (N, C_out, L_out).
    All else as in adder_conv2d.
    """
    return _adder_conv(1, input, weight, bias, stride, padding, dilation, groups, grad, recenter)


def adder_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
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
    The gradients are those of `grad` and leave that constant out.

    It computes in float32. Raw outputs are all negative, |mean| / std of a trained network's is up to about 1000, and
    16 bits would round the information away: under autocast the output stays float32, and 16-bit tensors are refused.
    With recenter=True outputs are small: under autocast they have autocast's dtype, and 16-bit tensors are welcome.

    Raises ValueError for shapes and options, TypeError for dtypes; the message names the value.
    """
    return _adder_conv(2, input, weight, bias, stride, padding, dilation, groups, grad, recenter)


def adder_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = False,
) -> Tensor:
    """3-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv3d.

    Shapes: input (N, C_in, D, H, W) or (C_in, D, H, W), weight (C_out, C_in / groups, kd, kh, kw), bias (C_out,)
    -> (N, C_out, D_out, H_out, W_out). All else as in adder_conv2d.
    """
    return _adder_conv(3, input, weight, bias, stride, padding, dilation, groups, grad, recenter)


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
    torch.nn.functional.linear. Gradients, `recenter`, dtypes and errors as in adder_conv2d.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, K)")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (..., {weight.shape[1]})")
    if input.dim() == 2:
        return _adder_conv(0, input, weight, bias, (), (), (), 1, grad, recenter)
    y = _adder_conv(0, input.reshape(-1, weight.shape[1]), weight, bias, (), (), (), 1, grad, recenter)
    return torch.ops.aten._unsafe_view(y, [*input.shape[:-1], weight.shape[0]])  # no view: FSDP2 hooks the output


def _adder_conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    groups: int,
    grad: GradientRule,
    recenter: bool,
) -> Tensor:
    if autocast.is_on(input):
        with torch.autocast(input.device.type, enabled=False):
            x, w, b = (autocast.widened(t) for t in (input, weight, bias))
            if recenter:
                x = input
            y = _adder_conv(dims, x, w, b, stride, padding, dilation, groups, grad, recenter)  # type: ignore[arg-type]
        return y.to(torch.get_autocast_dtype(input.device.type)) if recenter else y
    if recenter and input.dtype in NARROW and weight.dtype is input.dtype:
        w, b = autocast.widened(weight), autocast.widened(bias)
        return _adder_conv(dims, input, w, b, stride, padding, dilation, groups, grad, recenter)  # type: ignore[arg-type]
    if input.dim() == dims + 1:
        return _adder_conv(dims, input[None], weight, bias, stride, padding, dilation, groups, grad, recenter)[0]
    if type(stride) is not tuple or len(stride) != dims:
        stride = by_axis(stride, dims)
    if type(dilation) is not tuple or len(dilation) != dims:
        dilation = by_axis(dilation, dims)
    if isinstance(padding, str):
        input, padding = paddings.by_name(input, weight, padding, stride, dilation)
    elif type(padding) is not tuple or len(padding) != dims:
        padding = by_axis(padding, dims)
    if grad is not DEFAULT_RULE:
        grad.check()
    geometry = Geometry(stride, padding, dilation, groups)
    if ops.passes_through(input, weight, bias):
        if not torch.is_grad_enabled():
            return ops.forward(input, weight, bias, geometry, recenter)
        return _apply_straight(input, weight, bias, geometry, grad, recenter)
    if torch._C._are_functorch_transforms_active():
        return _TransformedAdderConv.apply(input, weight, bias, geometry, grad, recenter)
    return torch.ops.torchadder.adder_conv(input, weight, bias, *geometry, recenter, *grad)

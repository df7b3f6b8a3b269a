"""Compute adder convolutions as functions, with the arguments of torch.nn.functional's convolutions.

The gradient rules and the operator stand in torchadder.ops.adder.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchadder import ops
from torchadder.ops.adder import INPUT_RULES, WEIGHT_RULES
from torchadder.ops.geometry import NARROW, Geometry, by_axis, pad_by_name
from torchadder.ops.rounding import NUMBERS

from . import autocast


class GradientRule(NamedTuple):
    """Choose the gradient of the weight ("full" | "sign") and of the input ("hardtanh" | "sign" | "full").

    The paper's rule is the default; the formulas stand in torchadder.ops.adder. `numbers="int8"` rounds input and
    weight to bytes and the gradient of the output to 16 bits, which is faster on a CPU. torchadder.ops.rounding has the
    steps; they follow from the range of all inputs of a call, under torch.vmap from that of all its members. A layer in
    evaluation mode computes in float32; functions, and networks that were captured in training mode, always round.
    """

    weight: Literal["full", "sign"] = "full"
    input: Literal["hardtanh", "sign", "full"] = "hardtanh"
    numbers: Literal["float32", "int8"] = "float32"


DEFAULT_RULE = GradientRule()


def check_rule(grad: GradientRule) -> None:
    """Raise TypeError for what is no GradientRule, and ValueError for a rule that does not exist."""
    if not isinstance(grad, GradientRule):
        raise TypeError(f"grad={grad!r}: expected a GradientRule, such as GradientRule(weight='sign')")
    for name, value, allowed in (
        ("rule of the weight", grad.weight, WEIGHT_RULES),
        ("rule of the input", grad.input, INPUT_RULES),
        ("numbers", grad.numbers, NUMBERS),
    ):
        if value not in allowed:
            raise ValueError(f"grad {name} is {value!r}: choose one of {', '.join(allowed)}")


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
    """Compute a 1-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv1d.

    Shapes: input (N, C_in, L) or (C_in, L), weight (C_out, C_in / groups, kl), bias (C_out,) -> (N, C_out, L_out).
    Otherwise as adder_conv2d.
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
    """Compute a 2-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv2d.

        Y[n, o, i, j] = bias[o] - sum_{c, a, b} |X[n, c, i*s + a, j*s + b] - W[o, c, a, b]|     (eq. 2)

    Shapes: input (N, C_in, H, W) or (C_in, H, W), weight (C_out, C_in / groups, kh, kw), bias (C_out,), all
    float32 (float64 and other devices run on a slow reference) -> (N, C_out, H_out, W_out) as for conv2d. A padded
    position holds 0 and contributes -|W|. `padding` may be "valid" or "same". recenter=True adds sum |W| of each
    filter, a constant that a following normalisation absorbs: padding then contributes 0 and outputs stay small.
    The gradients follow the rule `grad`, which leaves that constant out.

    The computation is in float32. Raw outputs are all negative, |mean| / std in a trained network is up to about 1000,
    and 16 bits would round the information away: under autocast the output stays float32, and 16-bit tensors raise
    TypeError. With recenter=True outputs are small: under autocast they have autocast's dtype, and 16-bit tensors are
    allowed.

    Raise ValueError for shapes and options, TypeError for dtypes.
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
    """Compute a 3-d convolution by negative L1 distance, with the arguments of torch.nn.functional.conv3d.

    Shapes: input (N, C_in, D, H, W) or (C_in, D, H, W), weight (C_out, C_in / groups, kd, kh, kw), bias (C_out,)
    -> (N, C_out, D_out, H_out, W_out). Otherwise as adder_conv2d.
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
    """Compute a fully connected layer by negative L1 distance: Y[..., o] = bias[o] - sum_k |X[..., k] - W[o, k]|.

    Shapes: input (..., K), weight (C_out, K), bias (C_out,), float32 -> (..., C_out), as
    torch.nn.functional.linear. Gradients, `recenter`, dtypes and errors as in adder_conv2d.
    """
    autocast.is_on(input)  # raises for what is no tensor
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, K)")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (..., {weight.shape[1]})")
    if input.dim() == 2:
        return _adder_conv(0, input, weight, bias, (), (), (), 1, grad, recenter)
    y = _adder_conv(0, input.reshape(-1, weight.shape[1]), weight, bias, (), (), (), 1, grad, recenter)
    return y.reshape(*input.shape[:-1], weight.shape[0])


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
    stride, dilation = by_axis("stride", stride, dims), by_axis("dilation", dilation, dims)
    (groups,) = by_axis("groups", groups, 1)
    if isinstance(padding, str):
        input, padding = pad_by_name(input, weight, padding, stride, dilation)
    else:
        padding = by_axis("padding", padding, dims)
    if grad is not DEFAULT_RULE:
        check_rule(grad)
    return ops.adder_conv(input, weight, bias, Geometry(stride, padding, dilation, groups), recenter, *grad)

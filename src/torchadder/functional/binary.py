"""Compute binary convolutions as functions: XNOR-Net's signs and scales, with the arguments of torch.nn.functional.

The operator, its source and its gradients stand in torchadder.ops.binary.
"""

import torch
from torch import Tensor

from torchadder import ops
from torchadder.ops.geometry import Geometry, by_axis, pad_by_name

from . import autocast


def binary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute a 2-d convolution of signs, scaled by filter, with the arguments of torch.nn.functional.conv2d.

        Y[n, o, i, j] = bias[o] + alpha[o] * sum_{c, a, b} sign(X[n, c, i*s + a, j*s + b]) * sign(W[o, c, a, b])
        alpha[o] = mean |W[o]|

    Shapes: input (N, C_in, H, W) or (C_in, H, W), weight (C_out, C_in / groups, kh, kw), bias (C_out,), all of one
    floating dtype -> (N, C_out, H_out, W_out) as for conv2d. sign(0) is +1 and sign(NaN) is NaN. A padded position
    has no sign and contributes 0. `padding` may be "valid" or "same". Sums are integers, computed in float32;
    a 16-bit output is rounded once, at the end. Under autocast input and weight are widened to float32, and the
    output is float32. The gradients stand in torchadder.ops.binary.

    Raise ValueError for shapes and options, TypeError for dtypes.
    """
    if autocast.is_on(input):
        with torch.autocast(input.device.type, enabled=False):
            x, w, b = (autocast.widened(t) for t in (input, weight, bias))
            return binary_conv2d(x, w, b, stride, padding, dilation, groups)  # type: ignore[arg-type]
    if input.dim() == 3:
        return binary_conv2d(input[None], weight, bias, stride, padding, dilation, groups)[0]
    geometry, (row, column) = _geometry(input, weight, stride, padding, dilation, groups)
    y = ops.binary_conv(input, weight, bias, *geometry)
    return y[:, :, row:, column:].clone() if row or column else y


def binary_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a fully connected layer of signs: Y[..., o] = bias[o] + alpha[o] * sum_k sign(X[..., k]) * sign(W[o, k]).

    Shapes: input (..., K), weight (C_out, K), bias (C_out,), all of one floating dtype -> (..., C_out), as
    torch.nn.functional.linear. alpha, gradients and errors as in binary_conv2d.
    """
    if autocast.is_on(input):
        with torch.autocast(input.device.type, enabled=False):
            x, w, b = (autocast.widened(t) for t in (input, weight, bias))
            return binary_linear(x, w, b)  # type: ignore[arg-type]
    if weight.dim() != 2 or min(weight.shape) < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, K), every size at least 1")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (..., {weight.shape[1]})")
    if input.dim() == 2:
        return ops.binary_conv(input, weight, bias, (), (), (), 1)
    y = ops.binary_conv(input.reshape(-1, weight.shape[1]), weight, bias, (), (), (), 1)
    return y.reshape(*input.shape[:-1], weight.shape[0])


def _geometry(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    groups: int,
) -> tuple[Geometry, tuple[int, int]]:
    """Return the geometry, and the row and the column at which the output begins.

    They are 1 for padding="same" with an even kernel, which needs one more zero below or on the right. As an input
    that zero would count as +1. Both sides get one after the sign instead, and the first row or column of outputs is
    dropped.
    """
    stride, dilation = by_axis("stride", stride, 2), by_axis("dilation", dilation, 2)
    (groups,) = by_axis("groups", groups, 1)
    if not isinstance(padding, str):
        return Geometry(stride, by_axis("padding", padding, 2), dilation, groups), (0, 0)
    padded, (vertical, horizontal) = pad_by_name(x, weight, padding, stride, dilation)
    if padded is x:
        return Geometry(stride, (vertical, horizontal), dilation, groups), (0, 0)
    row, column = padded.shape[2] - x.shape[2], padded.shape[3] - x.shape[3]
    return Geometry(stride, (vertical + row, horizontal + column), dilation, groups), (row, column)

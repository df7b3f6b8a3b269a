"""Binary convolutions as functions: XNOR-Net's operator, and gradients that go straight through its signs.

Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016, arXiv
1603.05279. With W~ = alpha sign(W), the estimate of the filter W:

    dX = (gradient that reaches sign(X)) * 1{|X| <= 1}      straight through, clipped (Courbariaux et al., 1602.02830)
    dW = dW~                                                straight through (DoReFa-Net, Zhou et al., 1606.06160)

XNOR-Net has dW~ * (1 / n + alpha * 1{|W| <= 1}) for a filter of n elements. With an initial |W| of about 1 / sqrt(n)
that is a tenth to a fiftieth of dW~, which Adam, that its authors train with, scales away; SGD, with the rate of the
CNN, then turns next to no sign (docs/decisions.md has the numbers).

The paper's second scale, K, the mean |X| under each position of the filter, is left out as in the authors' own code:
without it they lose "less than 1% top-1" with AlexNet (p. 12), and it costs a multiplication for every output.
Input and weight are all that is kept for the backward pass.
"""

import math
from typing import Any

import torch
from torch import Tensor

from torchadder import ops
from torchadder.ops.binary import scale, sign, wide
from torchadder.ops.geometry import Geometry, by_axis

from . import autocast
from . import padding as paddings
from .adder import Once


class _BinaryConv(torch.autograd.Function):
    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return ops.binary_conv(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *Once.apply(_gradients, grad, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation, groups = geometry
    signs, filters = wide(sign(x)), wide(weight)
    dx, dw, db = torch.ops.aten.convolution_backward(
        wide(grad),
        signs,
        scale(filters) * sign(filters),
        weight.shape[:1],
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        wanted,
    )
    if dx is not None:
        dx = (dx * (x.abs() <= 1)).to(x.dtype)
    if dw is not None:
        dw = dw.to(x.dtype)
    if db is not None:
        db = db.to(x.dtype)
    return dx, dw, db


def _of_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *Once.apply(_gradients, grad, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), *[None] * 4


def _context_of_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, stride, padding, dilation, groups = inputs
    ctx.save_for_backward(x, weight)
    ctx.geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


torch.library.register_autograd("torchadder::binary_conv", _of_operator, setup_context=_context_of_operator)


def binary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """2-d convolution of signs, scaled by filter, with the arguments of torch.nn.functional.conv2d.

        Y[n, o, i, j] = bias[o] + alpha[o] * sum_{c, a, b} sign(X[n, c, i*s + a, j*s + b]) * sign(W[o, c, a, b])
        alpha[o] = mean |W[o]|

    Shapes: input (N, C_in, H, W) or (C_in, H, W), weight (C_out, C_in / groups, kh, kw), bias (C_out,), all of one
    floating dtype -> (N, C_out, H_out, W_out) as for conv2d. sign(0) is +1 and sign(NaN) is NaN. A padded position
    has no sign and contributes 0. `padding` may be "valid" or "same". Sums are whole numbers, computed in float32;
    a 16-bit output is rounded once, at the end. Under autocast input and weight are widened to float32, and the
    output is float32. Gradients as in the module's docstring.

    Raises ValueError for shapes and options, TypeError for dtypes; the message names the value.
    """
    if autocast.is_on(input):
        with torch.autocast(input.device.type, enabled=False):
            x, w, b = (autocast.widened(t) for t in (input, weight, bias))
            return binary_conv2d(x, w, b, stride, padding, dilation, groups)  # type: ignore[arg-type]
    if input.dim() == 3:
        return binary_conv2d(input[None], weight, bias, stride, padding, dilation, groups)[0]
    geometry, (row, column) = _geometry(input, weight, stride, padding, dilation, groups)
    if torch._C._are_functorch_transforms_active():
        y = _BinaryConv.apply(input, weight, bias, geometry)
    else:
        y = ops.binary_conv(input, weight, bias, *geometry)
    return y[:, :, row:, column:].clone() if row or column else y


def binary_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Fully connected layer of signs: Y[..., o] = bias[o] + alpha[o] * sum_k sign(X[..., k]) * sign(W[o, k]).

    Shapes: input (..., K), weight (C_out, K), bias (C_out,), all of one floating dtype -> (..., C_out), as
    torch.nn.functional.linear. alpha, gradients and errors as in binary_conv2d.
    """
    if weight.dim() != 2 or min(weight.shape) < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, K), every size at least 1")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {tuple(input.shape)}: expected (..., {weight.shape[1]})")
    rows = math.prod(input.shape[:-1])
    image = (1, 1, rows) if rows else (0, 1, 1)  # pixels of one row: torch runs their convolution as a matrix product
    pixels = input.reshape(*image, weight.shape[1]).permute(0, 3, 1, 2)
    y = binary_conv2d(pixels, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*input.shape[:-1], weight.shape[0])


def _geometry(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    groups: int,
) -> tuple[Geometry, tuple[int, int]]:
    """The geometry, and the row and the column at which the output begins.

    They are 1 for "same" with an even kernel, which asks for one more zero below or on the right. As an input that zero
    would count as +1: both sides get one after the sign instead, and the first line of outputs goes.
    """
    stride, dilation = by_axis(stride, 2), by_axis(dilation, 2)
    if not isinstance(padding, str):
        return Geometry(stride, by_axis(padding, 2), dilation, groups), (0, 0)
    padded, (vertical, horizontal) = paddings.by_name(x, weight, padding, stride, dilation)
    if padded is x:
        return Geometry(stride, (vertical, horizontal), dilation, groups), (0, 0)
    row, column = padded.shape[2] - x.shape[2], padded.shape[3] - x.shape[3]
    return Geometry(stride, (vertical + row, horizontal + column), dilation, groups), (row, column)

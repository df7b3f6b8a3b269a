"""Register the operator of a binary convolution, XNOR-Net's, with its gradient, in plain torch.

    torchadder::binary_conv   Y[o] = alpha[o] * conv(sign(X), sign(W))[o] + bias[o]     alpha[o] = mean |W[o]|

Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016, arXiv
1603.05279. The number of spatial dimensions is the length of stride, padding and dilation: 0 (a fully connected layer)
to 3. Sums of +1 and -1 are integers,
which float32 holds exactly: torch's own convolution of the signs computes them on any device, and the output has the
memory format that it gives. With W~ = alpha sign(W), the estimate of the filter W, the gradients are

    dX = (gradient that reaches sign(X)) * 1{|X| <= 1}      straight-through, clipped (Courbariaux et al., 1602.02830)
    dW = dW~                                                straight-through (DoReFa-Net, Zhou et al., 1606.06160)

XNOR-Net has dW~ * (1 / n + alpha * 1{|W| <= 1}) for a filter of n elements. With an initial |W| of about 1 / sqrt(n)
this factor is between 1/10 and 1/50. Adam, with which its authors train, cancels such a factor; SGD with the CNN's
learning rate then changes hardly any sign (docs/decisions.md has the numbers).

The paper's second scale, K, the mean |X| under each position of the filter, is left out as in the authors' own code:
without it they lose "less than 1% top-1" with AlexNet (p. 12), and it costs a multiplication for every output.
Input and weight are all that is saved for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from .convolution import convolution, convolution_backward
from .geometry import Geometry, memory_format
from .gradient import differentiable, once

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_library = torch.library.Library("torchadder", "FRAGMENT")
_library.define(
    "binary_conv(Tensor input, Tensor weight, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)

_operator = torch.ops.torchadder.binary_conv.default


def sign(tensor: Tensor) -> Tensor:
    """Return +1 for 0 and above, -1 below, NaN for NaN: 1 - 2 * 1{X < 0} (torch.where takes five times as long)."""
    return torch.add(tensor.clamp(1, 1), tensor < 0, alpha=-2)  # clamp keeps a NaN


def scale(weight: Tensor) -> Tensor:
    """Return alpha[o] = mean |W[o]|, one number a filter: (C_out, 1, ...)."""
    return weight.abs().mean(tuple(range(1, weight.dim())), keepdim=True)


def wide(tensor: Tensor) -> Tensor:
    """Return a 16-bit tensor in float32, others unchanged: bfloat16 holds all integers up to 256 only."""
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor


def _check(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{x.dtype} input: binary layers take floating point; cast input and weight with .float()")
    geometry.check(x, weight, bias)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.dim() == 3 else memory_format(x, weight)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    _check(geometry, x, weight, bias)
    signs = wide(sign(x)), wide(sign(weight))
    y = convolution(*signs, geometry)
    y *= scale(wide(weight)).transpose(0, 1)
    if bias is not None:
        y += bias.view(-1, *[1] * geometry.dims)
    return y.to(x.dtype).contiguous(memory_format=_layout(x, weight))


_library.impl("binary_conv", _forward, "CompositeExplicitAutograd")


@torch.library.register_fake("torchadder::binary_conv", lib=_library)
def _(x, weight, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    _check(geometry, x, weight, bias)
    return torch.empty_like(x.new_empty(geometry.output_shape(x, weight)), memory_format=_layout(x, weight))


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    filters = wide(weight)
    estimate = scale(filters) * sign(filters)
    dx, dw, db = convolution_backward(wide(grad), wide(sign(x)), estimate, geometry, wanted)
    if dx is not None:
        dx = dx * (x.abs() <= 1)
    return tuple(None if t is None else t.to(x.dtype) for t in (dx, dw, db))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, stride, padding, dilation, groups = inputs
    ctx.save_for_backward(x, weight)
    ctx.geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *once(_gradients, grad, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), *[None] * 4


binary_conv = differentiable(_operator, _save, _backward, _library)


@torch.library.register_vmap("torchadder::binary_conv", lib=_library)
def _(info, in_dims, x, weight, bias, *options):  # type: ignore[no-untyped-def]
    def members(tensor, dim):  # type: ignore[no-untyped-def]
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    size, (*axes, groups), (x_dim, weight_dim, bias_dim) = info.batch_size, options, in_dims[:3]
    images = members(x, x_dim)
    if weight_dim is None and bias_dim is None:
        return _operator(images.flatten(0, 1), weight, bias, *options).unflatten(0, (size, -1)), 0
    # every member of the batch becomes a range of groups
    filters = members(weight, weight_dim).flatten(0, 1)
    biases = None if bias is None else members(bias, bias_dim).flatten(0, 1)
    y = _operator(images.transpose(0, 1).flatten(1, 2), filters, biases, *axes, size * groups)
    return y.unflatten(1, (size, -1)), 1

"""The operator of a binary convolution, XNOR-Net's (Rastegari et al., ECCV 2016, arXiv 1603.05279), in plain torch.

    torchadder::binary_conv   Y[o] = alpha[o] * conv(sign(X), sign(W))[o] + bias[o]     alpha[o] = mean |W[o]|

One, two or three dimensions: as many as stride, padding and dilation have numbers. It has no derivative of its own: the
gradient rule is torchadder.functional's. Sums of +1 and -1 are whole numbers, which float32 holds exactly: torch's own
convolution of the signs computes them, on any device. The output keeps the memory format that it would give.
"""

import torch
from torch import Tensor

from .geometry import Geometry
from .plan import memory_format

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_library = torch.library.Library("torchadder", "FRAGMENT")
_library.define(
    "binary_conv(Tensor input, Tensor weight, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)

binary_conv = torch.ops.torchadder.binary_conv.default


def sign(tensor: Tensor) -> Tensor:
    """+1 for 0 and above, -1 below, NaN for NaN: 1 - 2 * 1{X < 0} (torch.where takes five times as long)."""
    return torch.add(tensor.clamp(1, 1), tensor < 0, alpha=-2)  # clamp keeps a NaN


def scale(weight: Tensor) -> Tensor:
    """alpha[o] = mean |W[o]|, one number a filter: (C_out, 1, ...)."""
    return weight.abs().mean(tuple(range(1, weight.dim())), keepdim=True)


def wide(tensor: Tensor) -> Tensor:
    """16 bits as float32: bfloat16 holds sums of signs up to 256."""
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
    y = torch.ops.aten.convolution(*signs, None, stride, padding, dilation, False, [0] * geometry.dims, groups)
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


@torch.library.register_vmap("torchadder::binary_conv", lib=_library)
def _(info, in_dims, x, weight, bias, *options):  # type: ignore[no-untyped-def]
    def members(tensor, dim):  # type: ignore[no-untyped-def]
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    size, (*axes, groups), (of_x, of_weight, of_bias) = info.batch_size, options, in_dims[:3]
    images = members(x, of_x)
    if of_weight is None and of_bias is None:
        return binary_conv(images.flatten(0, 1), weight, bias, *options).unflatten(0, (size, -1)), 0
    # Every member of the batch becomes a range of groups.
    filters = members(weight, of_weight).flatten(0, 1)
    biases = None if bias is None else members(bias, of_bias).flatten(0, 1)
    y = binary_conv(images.transpose(0, 1).flatten(1, 2), filters, biases, *axes, size * groups)
    return y.unflatten(1, (size, -1)), 1

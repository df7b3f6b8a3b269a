"""Call torch's convolution and its gradients with a Geometry, which may have no axes: a matrix product then."""

from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the convolution of x (N, C_in, *size) with weight (C_out, C_in / groups, *kernel), without bias."""
    stride, padding, dilation, groups = geometry
    if stride:
        return torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)
    if groups == 1:
        return x.mm(weight.t())
    return convolution(x[:, :, None], weight[:, :, None], geometry.unsqueezed()).squeeze(2)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, ...]
) -> tuple[Any, ...]:
    """Return the gradients of x, weight and bias, from that of the output; None for those that are not ``wanted``."""
    stride, padding, dilation, groups = geometry
    if stride:
        options = (weight.shape[:1], stride, padding, dilation, False, [0] * len(stride), groups, wanted)
        return torch.ops.aten.convolution_backward(grad, x, weight, *options)
    if groups == 1:
        dx, dw = grad.mm(weight) if wanted[0] else None, grad.t().mm(x) if wanted[1] else None
        return dx, dw, grad.sum(0) if wanted[2] else None
    grad, x, weight = (t[:, :, None] for t in (grad, x, weight))
    dx, dw, db = convolution_backward(grad, x, weight, geometry.unsqueezed(), wanted)
    return *(None if t is None else t.squeeze(2) for t in (dx, dw)), db

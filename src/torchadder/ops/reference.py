"""The operator in plain torch, one filter tap at a time: any device, any float dtype, slow and plain.

It serves what has no kernel of its own (float64, other devices), and it is what the kernels are read against.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Conv2dGeometry


def forward(x: Tensor, weight: Tensor, geometry: Conv2dGeometry, recenter: bool) -> Tensor:
    """Y[o] = - sum over c, a, b of |X[c, i*s + a, j*s + b] - W[o, c, a, b]|  (paper, eq. 2)."""
    y = x.new_zeros(geometry.output_shape(x, weight))
    for a, b, patch in _taps(_padded(x, geometry), weight, geometry, y.shape):
        for o, source in _filters(patch, weight, geometry):
            y[:, o] -= (source - weight[o, :, a, b, None, None]).abs().sum(1)
    return y + weight.abs().sum((1, 2, 3))[:, None, None] if recenter else y


def grad_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, rule: str) -> Tensor:
    """dX[c] = sum over o of rule(W[o, c] - X[c]) * dY[o]; rule is "hardtanh" (eq. 6) or "sign"."""
    clamp = _sign if rule == "sign" else F.hardtanh
    padded = _padded(x, geometry)
    result = torch.zeros_like(padded, memory_format=torch.contiguous_format)
    taps = zip(_taps(padded, weight, geometry, grad.shape), _taps(result, weight, geometry, grad.shape), strict=True)
    for (a, b, patch), (_, _, target) in taps:
        filters = zip(_filters(patch, weight, geometry), _filters(target, weight, geometry), strict=True)
        for (o, source), (_, sink) in filters:
            sink += clamp(weight[o, :, a, b, None, None] - source) * grad[:, o, None]
    (top, left), (height, width) = geometry.padding, x.shape[2:]
    return result[:, :, top : top + height, left : left + width].contiguous()


def grad_weight_sign(grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """dW[o, c, a, b] = sum over positions of sign(X[c] - W[o, c, a, b]) * dY[o]: the true derivative."""
    result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for a, b, patch in _taps(_padded(x, geometry), weight, geometry, grad.shape):
        for o, source in _filters(patch, weight, geometry):
            terms = _sign(source - weight[o, :, a, b, None, None]) * grad[:, o, None]
            result[o, :, a, b] = terms.sum((0, 2, 3))
    return result


def _sign(t: Tensor) -> Tensor:
    return torch.where(t.isnan(), t, t.sign())  # torch.sign alone would hide a NaN


def _padded(x: Tensor, geometry: Conv2dGeometry) -> Tensor:
    (vertical, horizontal) = geometry.padding
    return F.pad(x, (horizontal, horizontal, vertical, vertical))


def _taps(
    padded: Tensor, weight: Tensor, geometry: Conv2dGeometry, output_shape: torch.Size
) -> Iterator[tuple[int, int, Tensor]]:
    """Every filter tap (a, b) with the view of the padded input that it meets, (N, C, H_out, W_out)."""
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    height, width = output_shape[2:]
    for a in range(weight.shape[2]):
        for b in range(weight.shape[3]):
            rows = slice(a * dh, a * dh + (height - 1) * sh + 1, sh)
            columns = slice(b * dw, b * dw + (width - 1) * sw + 1, sw)
            yield a, b, padded[:, :, rows, columns]


def _filters(patch: Tensor, weight: Tensor, geometry: Conv2dGeometry) -> Iterator[tuple[int, Tensor]]:
    """Every filter o with the channels of its own group, a view (N, C_in / groups, H_out, W_out)."""
    depth = weight.shape[1]
    per_group = weight.shape[0] // geometry.groups
    for o in range(weight.shape[0]):
        start = o // per_group * depth
        yield o, patch[:, start : start + depth]

"""Compute the operators in plain torch, one filter tap at a time: any device, any float dtype, slow.

This backend serves what has no kernel (float64, other devices). It also shows in a few lines what the kernels compute.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry

Index = tuple[Any, ...]  # along the axes of an image


def forward(x: Tensor, weight: Tensor, geometry: Geometry, recenter: bool) -> Tensor:
    """Compute Y[o] = - sum over c, a, b of |X[c, i*s + a, j*s + b] - W[o, c, a, b]|  (paper, eq. 2)."""
    y = x.new_zeros(geometry.output_shape(x, weight))
    for tap, patch in _taps(_padded(x, geometry), weight, geometry, y.shape):
        for o, source in _filters(patch, weight, geometry):
            y[:, o] -= (source - _column(weight, o, tap)).abs().sum(1)
    if recenter:
        y += weight.abs().flatten(1).sum(1).reshape(-1, *[1] * geometry.dims)
    return y


def grad_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """Compute dX[c] = sum over o of rule(W[o, c] - X[c]) * dY[o]; rule is "hardtanh" (eq. 6) or "sign"."""
    clamp = _sign if rule == "sign" else F.hardtanh
    padded = _padded(x, geometry)
    result = torch.zeros_like(padded, memory_format=torch.contiguous_format)
    taps = zip(_taps(padded, weight, geometry, grad.shape), _taps(result, weight, geometry, grad.shape), strict=True)
    for (tap, patch), (_, target) in taps:
        filters = zip(_filters(patch, weight, geometry), _filters(target, weight, geometry), strict=True)
        for (o, source), (_, sink) in filters:
            sink += clamp(_column(weight, o, tap) - source) * grad[:, o, None]
    inside: Index = tuple(slice(p, p + size) for p, size in zip(geometry.padding, x.shape[2:], strict=True))
    return result[(..., *inside)].contiguous()


def grad_weight_sign(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute dW[o, c, a, b] = sum over positions of sign(X[c] - W[o, c, a, b]) * dY[o]: the true derivative."""
    result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for tap, patch in _taps(_padded(x, geometry), weight, geometry, grad.shape):
        for o, source in _filters(patch, weight, geometry):
            terms = _sign(source - _column(weight, o, tap)) * grad[:, o, None]
            result[(o, slice(None), *tap)] = terms.transpose(0, 1).flatten(1).sum(1)
    return result


def _sign(t: Tensor) -> Tensor:
    return torch.where(t.isnan(), t, t.sign())  # torch.sign alone would hide a NaN


def _column(weight: Tensor, o: int, tap: Index) -> Tensor:
    """Return filter o at one tap, (C, 1, ...): it broadcasts over (N, C, *size)."""
    return weight[(o, slice(None), *tap)].reshape(-1, *[1] * (weight.dim() - 2))


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    return F.pad(x, [p for p in reversed(geometry.padding) for _ in range(2)]) if any(geometry.padding) else x


def _taps(
    padded: Tensor, weight: Tensor, geometry: Geometry, output_shape: torch.Size
) -> Iterator[tuple[Index, Tensor]]:
    """Yield every filter tap with the view of the padded input under it, (N, C, *output size)."""
    for tap in itertools.product(*map(range, weight.shape[2:])):
        axes = zip(tap, output_shape[2:], geometry.stride, geometry.dilation, strict=True)
        window: Index = tuple(slice(a * d, a * d + (size - 1) * s + 1, s) for a, size, s, d in axes)
        yield tap, padded[(..., *window)]


def _filters(patch: Tensor, weight: Tensor, geometry: Geometry) -> Iterator[tuple[int, Tensor]]:
    """Yield every filter o with the channels of its own group, a view (N, C_in / groups, *size)."""
    depth = weight.shape[1]
    per_group = weight.shape[0] // geometry.groups
    for o in range(weight.shape[0]):
        start = o // per_group * depth
        yield o, patch[:, start : start + depth]

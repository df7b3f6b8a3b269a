"""Compute the adder convolution by brute force, in float64: every difference of a patch and a filter, in memory.

It shares only Geometry and the rounding of numbers="int8" with the operator's backends, so that kernels can be checked
against it on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchadder.ops import rounding
from torchadder.ops.geometry import Geometry

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Describe one convolution: input (n, c_in, *size), weight (c_out, c_in / groups, *kernel).

    An empty stride, padding or dilation stands for 1, 0 and 1 along each axis.
    """

    n: int
    c_in: int
    c_out: int
    size: Axes
    kernel: Axes
    stride: Axes = ()
    padding: Axes = ()
    dilation: Axes = ()
    groups: int = 1

    def __post_init__(self) -> None:
        for name, neutral in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, getattr(self, name) or (neutral,) * len(self.size))

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def output_size(self) -> Axes:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return input, weight and output gradient, standard normal, float32."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.n, self.c_in, *self.size, generator=generator)
        weight = torch.randn(self.c_out, self.c_in // self.groups, *self.kernel, generator=generator)
        return x, weight, torch.randn(self.n, self.c_out, *self.output_size, generator=generator)


class Gradients(NamedTuple):
    """Hold output and gradients: ``grad_input`` by HardTanh, the ``sign`` ones by the true derivative."""

    output: Tensor
    grad_input: Tensor
    grad_input_sign: Tensor
    grad_weight_sign: Tensor


def brute_force(case: Case, x: Tensor, weight: Tensor, grad: Tensor) -> Gradients:
    """Return output (N, C_out, *size) and gradients, all float64; every patch is C_out times in memory."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    groups, taps, places = case.groups, prod(case.kernel), grad[0, 0].numel()
    margins = [p for p in reversed(case.padding) for _ in range(2)]
    numbers = torch.arange(1, x[0, 0].numel() + 1).view(1, 1, *case.size)
    pixel_index = _windows(case, pad(numbers, margins))[0, 0]  # of each patch element, from 1; 0 is padding
    patches = _windows(case, pad(x, margins)).reshape(case.n, groups, 1, -1, places)  # (N, G, 1, K, L)
    filters = weight.reshape(1, groups, case.c_out // groups, -1, 1)  # (1, G, O / G, K, 1)
    dy = grad.reshape(case.n, groups, case.c_out // groups, 1, places)  # (N, G, O / G, 1, L)
    difference = filters - patches

    def input_gradient(terms: Tensor) -> Tensor:
        columns = (terms * dy).sum(2).view(case.n, case.c_in, taps * places)
        pixels = torch.zeros(case.n, case.c_in, numbers.numel() + 1, dtype=torch.float64)
        return pixels.index_add_(2, pixel_index.flatten(), columns)[:, :, 1:].view(x.shape)

    return Gradients(
        output=-difference.abs().sum(3).view(grad.shape),  # eq. 2
        grad_input=input_gradient(difference.clamp(-1, 1)),  # eq. 6
        grad_input_sign=input_gradient(difference.sign()),
        grad_weight_sign=(-difference.sign() * dy).sum((0, 4)).view(weight.shape),
    )


def brute_force_rounded(case: Case, x: Tensor, weight: Tensor, grad: Tensor) -> Gradients:
    """Return output and input gradients as numbers="int8" rounds them: brute_force, each with its own grid."""
    rounded_x, rounded_weight, _ = rounding.on_grid(x, weight)
    output = brute_force(case, rounded_x, rounded_weight, grad).output
    rounded_x, rounded_weight, levels = rounding.on_grid(x, weight, gradient=True)
    dy = rounding.gradient(grad, weight, levels, case.groups)
    return brute_force(case, rounded_x, rounded_weight, dy)._replace(output=output)


def _windows(case: Case, padded: Tensor) -> Tensor:
    """Return (N, C, T, L): the elements under each of the T taps at each of the L output positions."""
    for axis, (k, s, d) in enumerate(zip(case.kernel, case.stride, case.dilation, strict=True)):
        padded = padded.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return padded.reshape(*padded.shape[:2], -1, prod(case.kernel)).transpose(2, 3)

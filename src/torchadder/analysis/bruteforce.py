"""The adder convolution by brute force, in float64: every difference of a patch and a filter, held in memory.

It shares no line with the operator's backends, so that kernels can be checked against it on any machine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


class Case(NamedTuple):
    """One convolution: input (n, c_in, *size), weight (c_out, c_in / groups, *kernel)."""

    n: int
    c_in: int
    c_out: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and output gradient, standard normal, float32."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.n, self.c_in, *self.size, generator=generator)
        weight = torch.randn(self.c_out, self.c_in // self.groups, *self.kernel, generator=generator)
        rows, columns = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return x, weight, torch.randn(self.n, self.c_out, rows, columns, generator=generator)


class Gradients(NamedTuple):
    """Output and gradients: `grad_input` by HardTanh, the `sign` ones by the true derivative."""

    output: Tensor
    grad_input: Tensor
    grad_input_sign: Tensor
    grad_weight_sign: Tensor


def brute_force(case: Case, x: Tensor, weight: Tensor, grad: Tensor) -> Gradients:
    """Output (N, C_out, H_out, W_out) and gradients, all float64; holds every patch C_out times in memory."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    window = {
        "kernel_size": case.kernel,
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
    }
    patches = F.unfold(x, **window).view(case.n, case.groups, 1, -1, grad[0, 0].numel())  # (N, G, 1, K, L)
    filters = weight.view(1, case.groups, case.c_out // case.groups, -1, 1)  # (1, G, O / G, K, 1)
    dy = grad.view(case.n, case.groups, case.c_out // case.groups, 1, -1)  # (N, G, O / G, 1, L)
    difference = filters - patches

    def input_gradient(terms: Tensor) -> Tensor:
        columns = (terms * dy).sum(2).view(case.n, -1, dy.shape[-1])
        return F.fold(columns, case.size, **window)

    return Gradients(
        output=-difference.abs().sum(3).view(grad.shape),  # eq. 2
        grad_input=input_gradient(difference.clamp(-1, 1)),  # eq. 6
        grad_input_sign=input_gradient(difference.sign()),
        grad_weight_sign=(-difference.sign() * dy).sum((0, 4)).view(weight.shape),
    )

"""The library's operators in torch.utils.flop_counter: importing this module makes FlopCounterMode count them.

FlopCounterMode has 2 flops per multiply-accumulate of a convolution, in the forward pass and in each gradient. The
operators here have 2 for each element that such a multiply-accumulate stands for, so that an AdderNet, a binary
network and their CNN twin come to the same number, forward and backward:

    adder_conv           subtract, accumulate
    binary_conv          XNOR, accumulate (popcount)
    adder_conv_grad_*    multiply by dY, accumulate

Left out is what is done once for an element of a tensor, as for a convolution (bias, a binary filter's scale, the
correction -W * sum(dY) of the weight gradient), and the HardTanh or sign of the difference that dY multiplies.
Products that a gradient operator computes inside itself count as that operator, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from torchadder import ops  # noqa: F401  defines the operators

ADDER_CONV = torch.ops.torchadder.adder_conv
BINARY_CONV = torch.ops.torchadder.binary_conv
_GRADIENTS = (torch.ops.torchadder.adder_conv_grad_input, torch.ops.torchadder.adder_conv_grad_weight)

Shape = Sequence[int]


def _forward(input: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _gradient(grad: Shape, input: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(grad) * prod(weight[1:])  # each output position meets each element of its filter once


for _formula, _operators in ((_forward, (ADDER_CONV, BINARY_CONV)), (_gradient, _GRADIENTS)):
    for _operator in _operators:
        if (
            _operator is not None and _operator not in flop_registry
        ):  # a reload finds them there, and the registry refuses duplicates
            register_flop_formula(_operator)(_formula)

"""Compute layers as functions, with the arguments of torch.nn.functional."""

import torch

from .adder import DEFAULT_RULE, GradientRule, adder_conv1d, adder_conv2d, adder_conv3d, adder_linear
from .binary import binary_conv2d, binary_linear

__all__ = [
    "DEFAULT_RULE",
    "GradientRule",
    "adder_conv1d",
    "adder_conv2d",
    "adder_conv3d",
    "adder_linear",
    "binary_conv2d",
    "binary_linear",
]

for _name in ("adder_conv1d", "adder_conv2d", "adder_conv3d", "adder_linear", "binary_conv2d", "binary_linear"):
    torch.fx.wrap(_name)  # a leaf to torch.fx.symbolic_trace

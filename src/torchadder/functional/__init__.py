"""Layers as functions: an operator and its gradient rule."""

import torch

from .adder import DEFAULT_RULE, GradientRule, adder_conv2d, adder_linear

__all__ = ["DEFAULT_RULE", "GradientRule", "adder_conv2d", "adder_linear"]

for _name in ("adder_conv2d", "adder_linear"):
    torch.fx.wrap(_name)  # a leaf to torch.fx.symbolic_trace

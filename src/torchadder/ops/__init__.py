"""Run the operators: one registration with torch.library, one backend a device."""

from .adder import adder_conv, adder_conv_grad_input, adder_conv_grad_weight
from .binary import binary_conv

__all__ = ["adder_conv", "adder_conv_grad_input", "adder_conv_grad_weight", "binary_conv"]

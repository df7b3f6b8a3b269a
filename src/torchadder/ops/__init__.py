"""How an operator reaches a kernel: one registration, one backend a device."""

from .registration import adder_conv2d, adder_conv2d_grad_input, adder_conv2d_grad_weight

__all__ = ["adder_conv2d", "adder_conv2d_grad_input", "adder_conv2d_grad_weight"]

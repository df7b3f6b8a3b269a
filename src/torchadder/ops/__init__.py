"""How an operator reaches a kernel: one registration, one backend a device."""

from . import batching  # noqa: F401  registers itself
from .binary import binary_conv
from .registration import forward
from .straight import adder_conv, adder_conv_grad_input, adder_conv_grad_weight, passes_through

__all__ = [
    "adder_conv",
    "adder_conv_grad_input",
    "adder_conv_grad_weight",
    "binary_conv",
    "forward",
    "passes_through",
]

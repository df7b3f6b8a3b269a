"""Layers that add instead of multiply, with the signatures of their torch.nn twins."""

from torchadder.functional import GradientRule

from .adder import Adder, AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear
from .binary import Binary, BinaryConv2d, BinaryLinear

__all__ = [
    "Adder",
    "AdderConv1d",
    "AdderConv2d",
    "AdderConv3d",
    "AdderLinear",
    "Binary",
    "BinaryConv2d",
    "BinaryLinear",
    "GradientRule",
]

"""Define adder and binary layers, with the signatures of their torch.nn counterparts."""

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

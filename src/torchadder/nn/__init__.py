"""Layers that add instead of multiply, with the signatures of their torch.nn twins."""

from ..functional import GradientRule
from .adder import Adder, AdderConv2d, AdderLinear

__all__ = ["Adder", "AdderConv2d", "AdderLinear", "GradientRule"]

"""Round the tensors of an adder convolution for training in integers, numbers="int8".

Input and weight are rounded to multiples of 1 / levels, with levels = floor(254 / range of the input): an input is then
one of 255 numbers, a byte, and 1, the limit of HardTanh, is a multiple. The gradient of the output is rounded to 16
bits. The native kernels compute with these integers and have no other rounding (native/conv/rounded.cpp); everywhere
else the rounded tensors go through the operators of floats, which compute the same.
"""

import torch
from torch import Tensor

NUMBERS = ("float32", "int8")
_STEPS = 254  # between the smallest and the largest input, at most
_MOST_LEVELS = 16384
_MOST_GRADIENT_LEVELS = 1e37
_INT32 = 2**31 - 1


def levels(x: Tensor) -> Tensor:
    """Return the steps a unit for an input: an integer, or below 1 for a range of more than 254. A scalar tensor."""
    if not x.numel():
        return x.new_tensor(1.0)
    low, high = torch.aminmax(x)
    steps = _STEPS / (high.clamp_min(0) - low.clamp_max(0))
    return torch.where(steps >= 1, steps.floor().clamp_max(_MOST_LEVELS), steps)


def to_grid(tensor: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest multiples of 1 / levels."""
    return (tensor * levels).round() / levels


def gradient(grad: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Return a gradient (N, C_out, *size) rounded to 16 bits, or to fewer where a sum could exceed 32 bits."""
    if not grad.numel():
        return grad
    terms = weight[:, 0].numel() * (levels.clamp_min(1).floor() + 128)
    steps = (_INT32 / terms.double()).floor().clamp(1, 32767).to(grad.dtype)
    largest = grad.abs().amax()
    return to_grid(grad, torch.where(largest > 0, (steps / largest).clamp_max(_MOST_GRADIENT_LEVELS), 1))

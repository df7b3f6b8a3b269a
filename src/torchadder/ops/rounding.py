"""Round the tensors of an adder convolution for training in integers, numbers="int8".

Input and weight are rounded to multiples of 1 / levels, with levels = floor(254 / range of the input): an input is then
a byte. A range above 254 makes steps above 1, and steps are never below 1 / 16384. For the input gradient levels are
floor(254 / (range + 2)): 1, the limit of HardTanh, is a multiple, and x - 1 and x + 1 are bytes, too. The gradient of
the output is rounded to 16 bits. The native kernels compute with these integers (native/conv/rounded.cpp); everywhere
else the rounded tensors go through the operators of floats.
"""

import torch
from torch import Tensor

NUMBERS = ("float32", "int8")
_STEPS = 254  # between the smallest and the largest input, at most
_MOST_LEVELS = 16384
_MOST_GRADIENT_LEVELS = 1e37
_GRADIENT_STEPS = 127 * 256 + 127  # of 16 bits, both bytes signed
_INT32 = 2**31 - 1
_MOST_WEIGHTS = 2**22  # in a filter of the native forward pass: a sum of 2 * 255 for each stays below 2**31
_MOST_TERMS = 2**17 - 1  # of the native input gradient: the gradient of the output keeps 129 steps


def has_integers(weight: Tensor, groups: int) -> bool:
    """Return whether the native integer kernels take this weight: one group, and not too many terms for 32 bits."""
    return groups == 1 and weight[0].numel() < _MOST_WEIGHTS and weight[:, 0].numel() <= _MOST_TERMS


def levels_of(x: Tensor, gradient: bool = False) -> Tensor:
    """Return the steps a unit for an input, forward or in the input gradient, a scalar tensor.

    They are an integer, or below 1 for a range of more than 254 (252 in the gradient).
    """
    if not x.numel():
        return x.new_tensor(float(_MOST_LEVELS))
    low, high = torch.aminmax(x)
    width, room = high.clamp_min(0) - low.clamp_max(0), 2 if gradient else 0
    steps = width.new_tensor(_STEPS) / (width + room)  # int / tensor would round twice, unlike the native code
    return torch.where(steps >= 1, steps.floor().clamp_max(_MOST_LEVELS), width.new_tensor(_STEPS - room) / width)


def on_grid(x: Tensor, weight: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return input and weight rounded, in the weight's dtype, and their levels."""
    x = x.to(weight.dtype)
    levels = levels_of(x, gradient)
    return to_grid(x, levels), to_grid(weight, levels), levels


def to_grid(tensor: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest multiples of 1 / levels. A dense tensor keeps its strides, those of axes of length 1 too."""
    return tensor.clone().mul_(levels).round_().div_(levels)


def gradient(grad: Tensor, weight: Tensor, levels: Tensor, groups: int) -> Tensor:
    """Return a gradient (N, C_out, *size) rounded to 16 bits, or to fewer where a sum could exceed 32 bits."""
    if not grad.numel():
        return grad
    limit = torch.where(levels.isfinite(), levels, 1).clamp_min(1).long()
    steps = (_INT32 // (weight[:, 0].numel() // groups * limit)).clamp(1, _GRADIENT_STEPS).to(grad.dtype)
    largest = grad.abs().amax()
    return to_grid(grad, torch.where(largest == 0, 1, (steps / largest).clamp_max(_MOST_GRADIENT_LEVELS)))

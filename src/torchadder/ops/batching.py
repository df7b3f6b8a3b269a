"""torch.vmap over the operators: a batch of calls is one call, on more images or on more groups.

Where only images are batched they join the other images. Where weights are, or are the result, every member of the
batch becomes a range of groups: batched (B, N, C, ...) images and (B, O, ...) weights lie as (N, B * C, ...) and
(B * O, ...).
"""

from typing import Any

import torch
from torch import Tensor

from .registration import library

Dims = tuple[int | None, ...]
Result = tuple[Tensor, int]
_operators = torch.ops.torchadder


def _members(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(B, ...): the batch first; a tensor that is the same for all members is expanded."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_images(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _members(tensor, dim, size).flatten(0, 1)


def _as_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _members(tensor, dim, size).transpose(0, 1).flatten(1, 2)


def _forward(info: Any, in_dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Result:
    size, (of_x, of_weight, of_bias) = info.batch_size, in_dims[:3]
    axes, (groups, *rest) = options[:3], options[3:]
    if of_weight is None and of_bias is None:
        y = _operators.adder_conv(_as_images(x, of_x, size), weight, bias, *options)
        return y.unflatten(0, (size, -1)), 0
    weights = _as_images(weight, of_weight, size)
    biases = None if bias is None else _as_images(bias, of_bias, size)
    y = _operators.adder_conv(_as_channels(x, of_x, size), weights, biases, *axes, size * groups, *rest)
    return y.unflatten(1, (size, -1)), 1


def _grad_input(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Result:
    size, (of_grad, of_x, of_weight) = info.batch_size, in_dims[:3]
    *axes, groups, rule = options
    if of_weight is None:
        images = _as_images(grad, of_grad, size), _as_images(x, of_x, size)
        return _operators.adder_conv_grad_input(*images, weight, *options).unflatten(0, (size, -1)), 0
    channels = _as_channels(grad, of_grad, size), _as_channels(x, of_x, size)
    weights = _as_images(weight, of_weight, size)
    dx = _operators.adder_conv_grad_input(*channels, weights, *axes, size * groups, rule)
    return dx.unflatten(1, (size, -1)), 1


def _grad_weight(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Result:
    size, (of_grad, of_x, of_weight) = info.batch_size, in_dims[:3]
    *axes, groups, rule = options
    channels = _as_channels(grad, of_grad, size), _as_channels(x, of_x, size)
    weights = _as_images(weight, of_weight, size)
    dw = _operators.adder_conv_grad_weight(*channels, weights, *axes, size * groups, rule)
    return dw.unflatten(0, (size, -1)), 0


torch.library.register_vmap("torchadder::adder_conv", _forward, lib=library)
torch.library.register_vmap("torchadder::adder_conv_grad_input", _grad_input, lib=library)
torch.library.register_vmap("torchadder::adder_conv_grad_weight", _grad_weight, lib=library)

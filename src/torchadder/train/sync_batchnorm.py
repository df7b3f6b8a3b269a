"""Batch normalisation over the batch of all processes on the CPU, where torch's own SyncBatchNorm refuses to work."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise(model: nn.Module) -> None:
    """Make every nn.BatchNorm in ``model`` normalise over all processes. Nothing but its class changes."""
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = SyncBatchNorm


class SyncBatchNorm(_BatchNorm):
    """nn.BatchNorm1d, 2d and 3d over the shares of all processes, with the same parameters, buffers and state dict.

    Shapes: (N, C, ...) -> the same; N may differ between processes. While training, each must call it equally
    often, forward and backward. Without a process group, or in evaluation mode, it is plain batch normalisation.

    The gradients of ``weight`` and ``bias`` are this process's part of the sum: DistributedDataParallel adds them up.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected an input of two or more dimensions, got shape {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)
        count, mean, var = moments(x.detach())
        if count < 2:
            raise ValueError(f"expected more than one value a channel over all processes, got shape {tuple(x.shape)}")
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), momentum)
        wide = torch.promote_types(x.dtype, torch.float32)
        return _Normalize.apply(x, self.weight, self.bias, mean.to(wide), var.to(wide), count, self.eps)


def moments(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Values a channel, their mean and biased variance, float64 (C), over ``x`` (N, C, ...) of all processes.

    Each process takes the squares around its own mean: those of adder outputs, whose mean is up to a thousand
    standard deviations, would cancel around 0.
    """
    axes = [0, *range(2, x.dim())]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.numel() // x.shape[1]
    mean = wide.sum(axes) / max(count, 1)
    squares = (wide - _by_channel(mean, x)).square_().sum(axes)
    ours = torch.cat([mean.new_tensor([count], dtype=torch.float64), mean.double(), squares.double()])
    parts = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ours)
    counts, means, all_squares = torch.stack(parts).split([1, x.shape[1], x.shape[1]], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (all_squares + counts * (means - mean).square()).sum(0) / total
    return total.item(), mean, var


class _Normalize(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of all processes' values."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count = count
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        wide = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _by_channel(mean, x)) * _by_channel(scale, x)
        grad_bias, grad_weight = wide.sum(axes), (wide * normal).sum(axes)
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        by_mean, by_scale = sums / ctx.count  # how far x moves the result through mean and variance
        factor = scale if weight is None else scale * weight
        grad_x = (wide - _by_channel(by_mean, x) - normal * _by_channel(by_scale, x)) * _by_channel(factor, x)
        grads = (grad_weight, grad_bias) if weight is not None else (None, None)
        return grad_x.to(x.dtype), *grads, None, None, None, None


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """``values`` (C) in a shape that goes with ``x`` (N, C, ...)."""
    return values.view(-1, *[1] * (x.dim() - 2))

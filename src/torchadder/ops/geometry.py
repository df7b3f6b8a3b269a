"""The geometry of a convolution in up to three dimensions, with the checks that torch's own operator makes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)
AXES = {0: "", 1: "L", 2: "H, W", 3: "D, H, W"}


class Geometry(NamedTuple):
    """Stride, zero padding and dilation, one number an axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def dims(self) -> int:
        return len(self.stride)

    def lifted(self) -> "Geometry":
        """The same convolution on images of height 1, for rows of pixels."""
        return Geometry((1, *self.stride), (0, *self.padding), (1, *self.dilation), self.groups)

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """(N, C_out, *size) of input (N, C_in, *size) and weight (C_out, C_in / groups, *kernel)."""
        return x.shape[0], weight.shape[0], *self.output_size(x.shape[2:], weight.shape[2:])

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Size of the output, axis by axis, for an input of `size` under a `kernel`."""
        axes = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    def check(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        grad: Tensor | None = None,
        wide_weights: bool = False,
    ) -> None:
        """Raise ValueError (shape, device, option) or TypeError (dtype, float for int): what, which value, what to do.

        `grad` is the gradient of the output, for the backward operators. All have the dtype of the input; with
        `wide_weights` weight and bias are float32 where that has 16 bits.
        """
        if self.dims not in AXES:
            raise ValueError(f"stride {tuple(self.stride)} has {self.dims} values: expected at most three")
        for name, values, least in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if len(values) != self.dims:
                raise ValueError(f"{name} is {tuple(values)}: expected {self.dims} values, as stride has")
            if not all(isinstance(value, int | torch.SymInt) for value in values):
                raise TypeError(f"{name} is {tuple(values)}: expected whole numbers")
            if min(values, default=least) < least:
                raise ValueError(f"{name} is {tuple(values)}: must be at least {least}")
        if x.dim() != self.dims + 2:
            raise ValueError(f"input has shape {tuple(x.shape)}: expected {_shape('N', 'C_in', self.dims)}")
        if weight.dim() != self.dims + 2:
            kernel = _shape("C_out", "C_in / groups", self.dims, "k")
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected {kernel}")
        of_weights = torch.float32 if wide_weights and x.dtype in NARROW else x.dtype
        for name, tensor, dtype in (
            ("weight", weight, of_weights),
            ("bias", bias, of_weights),
            ("grad", grad, x.dtype),
        ):
            if tensor is not None and tensor.dtype != dtype:
                what = "cast one of them" if dtype is x.dtype else f"expected {dtype} beside 16 bits"
                raise TypeError(f"input is {x.dtype} and {name} is {tensor.dtype}: {what}")
            if tensor is not None and tensor.device != x.device:
                raise ValueError(f"input is on {x.device} and {name} on {tensor.device}: move one of them")
        if min(weight.shape) < 1:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: every size must be at least 1")
        if self.groups < 1 or weight.shape[0] % self.groups:
            raise ValueError(f"groups is {self.groups}: must be positive and divide the {weight.shape[0]} filters")
        if x.shape[1] != weight.shape[1] * self.groups:
            raise ValueError(
                f"input has {x.shape[1]} channels: weight {tuple(weight.shape)} with groups={self.groups} "
                f"expects {weight.shape[1] * self.groups}"
            )
        output_shape = self.output_shape(x, weight)
        if min(output_shape[2:], default=1) < 1:
            raise ValueError(
                f"kernel {tuple(weight.shape[2:])} with dilation {tuple(self.dilation)} is larger than the "
                f"padded input of {tuple(x.shape[2:])} + 2 * {tuple(self.padding)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}: expected ({weight.shape[0]},)")
        if grad is not None and grad.shape != output_shape:
            raise ValueError(f"gradient has shape {tuple(grad.shape)}: expected the output's, {output_shape}")


def _shape(first: str, second: str, dims: int, prefix: str = "") -> str:
    axes = [prefix + (axis.lower() if prefix else axis) for axis in AXES[dims].split(", ") if axis]
    return f"({', '.join([first, second, *axes])})"


def by_axis(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """One number an axis. Raises ValueError for another count."""
    values = tuple(value) * (dims if len(value) == 1 else 1) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{values} has {len(values)} values: expected one or {dims}")
    return values

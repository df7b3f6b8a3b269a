"""The geometry of a 2-d convolution, with the checks that nn.Conv2d's own operator makes."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Conv2dGeometry(NamedTuple):
    """Stride, zero padding and dilation as (vertical, horizontal), and the number of groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """(N, C_out, H_out, W_out) of input (N, C_in, H, W) and weight (C_out, C_in / groups, kh, kw)."""
        height, width = self.output_size(x.shape[2:], weight.shape[2:])
        return x.shape[0], weight.shape[0], height, width

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(H_out, W_out) of an input of `size` (H, W) under a `kernel` (kh, kw)."""
        (sh, sw), (ph, pw), (dh, dw), _ = self
        return (
            (size[0] + 2 * ph - dh * (kernel[0] - 1) - 1) // sh + 1,
            (size[1] + 2 * pw - dw * (kernel[1] - 1) - 1) // sw + 1,
        )

    def check(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None) -> None:
        """Raise ValueError (shape, device, option) or TypeError (dtype) with one line: what, which value, what to do.

        `grad` is the gradient of the output, for the backward operators.
        """
        if x.dim() != 4:
            raise ValueError(f"input has shape {tuple(x.shape)}: expected (N, C_in, H, W)")
        if weight.dim() != 4:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (C_out, C_in / groups, kh, kw)")
        self._check_tensors(x, weight=weight, bias=bias, grad=grad)
        for name, values, least in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if min(values) < least:
                raise ValueError(f"{name} is {tuple(values)}: must be at least {least}")
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
        if min(output_shape[2:]) < 1:
            raise ValueError(
                f"kernel {tuple(weight.shape[2:])} with dilation {tuple(self.dilation)} is larger than the "
                f"padded input of {tuple(x.shape[2:])} + 2 * {tuple(self.padding)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}: expected ({weight.shape[0]},)")
        if grad is not None and grad.shape != output_shape:
            raise ValueError(f"gradient has shape {tuple(grad.shape)}: expected the output's, {output_shape}")

    @staticmethod
    def _check_tensors(x: Tensor, **others: Tensor | None) -> None:
        if not x.dtype.is_floating_point or x.dtype.itemsize < 4:
            raise TypeError(
                f"{x.dtype} input: adder layers compute in float32 (their outputs are too large for 16 bits); "
                "cast input and weight with .float()"
            )
        for name, tensor in others.items():
            if tensor is not None and tensor.dtype != x.dtype:
                raise TypeError(f"input is {x.dtype} and {name} is {tensor.dtype}: cast one of them")
            if tensor is not None and tensor.device != x.device:
                raise ValueError(f"input is on {x.device} and {name} on {tensor.device}: move one of them")

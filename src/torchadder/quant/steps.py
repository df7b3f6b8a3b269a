"""Hold the steps of an integer program, and their exact meaning in torch.

Activations are uint8 values q (N, C, H, W) that stand for real = scale * (q - zero_point). A layer has a 32-bit
accumulator for each output:

    adder     sum |x - w|                 w uint8, with the scale and zero point of x
    conv      sum x * w                   w int8; the zero point of x is part of the offset
    binary    sum sign(x) * sign(w)       sign(x) = +1 where x >= zero_point; a padded position contributes 0

over the taps of the kernel and the channels of the filter's group.

Its epilogue requantizes the accumulators by channel, together with the values r of a shortcut if there is one:

    q = clamp(((accumulator >> pre_shift) * multiplier + r * factor + offset) >> shift, 0, qmax)

No intermediate result overflows 32 bits. pre_shift, one number a layer, is 0 unless the accumulators are so large that
the multiplier would keep too few bits. qmax is 2**bits - 1. The epilogue of the last layer gives float32 logits
instead, accumulator * scale + bias, each operation rounded. Every backend computes exactly these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.functional import adder_conv2d

Kind = Literal["adder", "conv", "binary"]
Sides = tuple[int, int, int, int]  # top, left, bottom, right
Axes = int | tuple[int, int]  # of rows and of columns
EXACT = 1 << 23  # float32 is exact to twice this, and adder kernels compute up to twice an accumulator inside


class Requantization(nn.Module):
    """Turn accumulators int32 (N, C, H, W) into values uint8 0..qmax by the formula at the head of this file.

    multiplier, offset, shift and factor (None without a shortcut) are int32 (C,).
    """

    multiplier: Tensor
    offset: Tensor
    shift: Tensor
    factor: Tensor | None

    def __init__(
        self,
        multiplier: Tensor,
        offset: Tensor,
        shift: Tensor,
        factor: Tensor | None = None,
        qmax: int = 255,
        pre_shift: int = 0,
    ):
        super().__init__()
        self.qmax, self.pre_shift = qmax, pre_shift
        for name, value in (("multiplier", multiplier), ("offset", offset), ("shift", shift), ("factor", factor)):
            self.register_buffer(name, value)

    def forward(self, accumulator: Tensor, shortcut: Tensor | None = None) -> Tensor:
        total = (accumulator >> self.pre_shift) * by_channel(self.multiplier) + by_channel(self.offset)
        if shortcut is not None and self.factor is not None:
            total += shortcut.int() * by_channel(self.factor)
        return (total >> by_channel(self.shift)).clamp_(0, self.qmax).to(torch.uint8)


class Logits(nn.Module):
    """Turn accumulators int32 (N, C, H, W) into float32 by a scale and a bias for each channel, float32 (C,)."""

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, accumulator: Tensor) -> Tensor:
        return accumulator.float() * by_channel(self.scale) + by_channel(self.bias)


class Step(nn.Module):
    """Compute one value of the program from those whose numbers are ``sources``.

    A file has the ``kind``, and what of kernel, stride, padding, dilation and groups differs from ``defaults``.
    """

    kind: str
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, sources: Sequence[int]):
        super().__init__()
        self.sources = tuple(sources)


class Layer(Step):
    """Run a convolution of one kind and its epilogue. A fully connected layer has a kernel as large as its input.

    Args:
        kind: "adder", "conv" or "binary", see the head of this file.
        sources: the input and, where the requantization has a factor, the shortcut.
        weight: (C_out, C_in / groups, kh, kw), uint8 for an adder layer, int8 for the others, of a binary one -1 or 1.
        zero_point: the value that stands for 0 in each input channel, uint8 (C_in,); it fills the padding.
        stride, dilation: (rows, columns).
        padding: (rows, columns) on both sides, or (top, left, bottom, right).
        epilogue: Requantization, or Logits for the last layer.
        groups: into which the channels of input and output are divided; a filter sees those of its group.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"dilation": (1, 1), "groups": 1}
    kind: Kind
    weight: Tensor
    zero_point: Tensor

    def __init__(
        self,
        kind: Kind,
        sources: Sequence[int],
        weight: Tensor,
        zero_point: Tensor,
        stride: tuple[int, int],
        padding: Sides | tuple[int, int],
        epilogue: Requantization | Logits,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ):
        super().__init__(sources)
        self.kind, self.stride, self.padding, self.dilation, self.groups = kind, stride, padding, dilation, groups
        self.epilogue = epilogue
        self.register_buffer("weight", weight)
        self.register_buffer("zero_point", zero_point)

    def accumulate(self, x: Tensor) -> Tensor:
        """Return the accumulators, int32 (N, C_out, H, W), of values ``x``, uint8 (N, C_in, H, W)."""
        exact = torch.float32 if largest_accumulator(self.kind, self.weight) < EXACT else torch.float64
        zero = by_channel(self.zero_point)
        if self.kind == "binary":
            x, zero = (x >= zero).to(torch.int8) * 2 - 1, torch.zeros_like(zero)
        x = zero_padded(x.to(exact) - zero, four_sides(self.padding)) + zero
        axes = self.stride, 0, self.dilation, self.groups
        if self.kind == "adder":
            return -adder_conv2d(x, self.weight.to(exact), None, *axes).int()
        return F.conv2d(x, self.weight.to(exact), None, *axes).int()

    def forward(self, x: Tensor, *shortcut: Tensor) -> Tensor:
        return self.epilogue(self.accumulate(x), *shortcut)


class MaxPool(Step):
    """Take the largest value of each window, which is the largest real number too; padding is 0, the smallest.

    kernel, stride: one number, or (rows, columns). padding: also (top, left, bottom, right).
    """

    kind = "max_pool"

    def __init__(self, sources: Sequence[int], kernel: Axes, stride: Axes, padding: Axes | Sides = 0):
        super().__init__(sources)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        padded = zero_padded(x.float(), four_sides(self.padding))
        return F.max_pool2d(padded, self.kernel, self.stride).to(torch.uint8)


class AveragePool(Step):
    """Requantize the mean of each window of ``kernel`` (rows, columns), of those pixels that are no padding.

    The accumulators are integers, since they are means times a number that all counts of pixels divide, mean_unit.
    """

    kind = "average_pool"
    defaults: ClassVar[Mapping[str, Any]] = {"padding": 0}

    def __init__(
        self,
        sources: Sequence[int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        epilogue: Requantization,
        padding: Axes | Sides = 0,
    ):
        super().__init__(sources)
        self.kernel, self.stride, self.epilogue, self.padding = kernel, stride, epilogue, padding

    def forward(self, x: Tensor) -> Tensor:
        sides = four_sides(self.padding)
        counts = pixels_of_windows(x.shape[2:], self.kernel, self.stride, sides)
        sums = F.avg_pool2d(zero_padded(x.double(), sides), self.kernel, self.stride, divisor_override=1)
        return self.epilogue((sums * (mean_unit(counts) // counts.to(x.device))).int())


class Concat(Step):
    """Requantize several values of one height and width, whose channels follow one another."""

    kind = "concat"

    def __init__(self, sources: Sequence[int], epilogue: Requantization):
        super().__init__(sources)
        self.epilogue = epilogue

    def forward(self, *values: Tensor) -> Tensor:
        return self.epilogue(torch.cat(values, 1).int())


class Table(Step):
    """Look up each value in the table of its channel, or in one for all channels: ``table`` is uint8 (C or 1, 256)."""

    kind = "table"
    table: Tensor

    def __init__(self, sources: Sequence[int], table: Tensor):
        super().__init__(sources)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(self.table), device=x.device).view(-1, 1, 1)
        return self.table[rows, x.long()]


def largest_accumulator(kind: Kind, weight: Tensor) -> int:
    """Return the largest magnitude that a layer's accumulator can have, for any uint8 input."""
    if kind == "conv":
        return int(weight.int().abs().sum((1, 2, 3)).max()) * 255
    return weight[0].numel() * (255 if kind == "adder" else 1)


def pixels_of_windows(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sides) -> Tensor:
    """Return how many pixels of an image of ``size`` are in each window of a pooling, int64 (H, W)."""
    counts = []
    for n, k, s, before, after in zip(size, kernel, stride, padding[:2], padding[2:], strict=True):
        first = torch.arange(0, n + before + after - k + 1, s) - before
        counts.append((first + k).clamp(max=n) - first.clamp(min=0))
    return counts[0][:, None] * counts[1]


def mean_unit(counts: Tensor) -> int:
    """Return the least number that all ``counts`` of pixels divide."""
    return math.lcm(*counts.unique().tolist())


def four_sides(padding: Axes | Sequence[int]) -> Sides:
    """Return (top, left, bottom, right) of a padding that may be the same on both sides of each axis, or everywhere."""
    numbers = (padding,) if isinstance(padding, int) else tuple(padding)
    top, left, bottom, right = numbers * (4 // len(numbers))
    return top, left, bottom, right


def fewest(numbers: Any) -> Any:
    """Return numbers of axes or sides without those that repeat: one, (rows, columns) or four sides."""
    while len(numbers) > 1 and numbers[: len(numbers) // 2] == numbers[len(numbers) // 2 :]:
        numbers = numbers[: len(numbers) // 2]
    return numbers[0] if len(numbers) == 1 else numbers


def zero_padded(x: Tensor, padding: Sides) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom))


def by_channel(values: Tensor, axes: int = 2) -> Tensor:
    """Return numbers (C,) in the shape of (C, ...) with so many axes after the channels."""
    return values.view(-1, *[1] * axes)

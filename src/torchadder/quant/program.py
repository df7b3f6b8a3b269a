"""The integer program: what quantisation makes of a network, and its exact meaning in torch.

Values are uint8 codes (N, C, H, W), real = scale * (code - zero). Value 0 is the input, value i + 1 what step i makes.
A layer adds up whole numbers, 32 bits wide:

    adder     sum |x - w|                 w uint8, in the scale of x
    conv      sum x * w                   w int8; the zero of x is folded into the offset
    binary    sum sign(x) * sign(w)       sign(x) = +1 where x >= zero; a padded position contributes 0

and requantises them channel by channel, beside the codes r of a shortcut where there is one:

    code = clamp(((sum >> pre) * multiplier + r * factor + offset) >> shift, 0, highest)

Nothing of it overflows 32 bits: pre, one number a layer, is 0 but for sums so large that a multiplier would have few
bits left beside them. highest is 255, or less for fewer than 8 bits. The last layer gives float32 logits
instead, sum * gain + bias, each operation rounded once. Every backend gives these very numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.functional import adder_conv2d

Kind = Literal["adder", "conv", "binary"]
EXACT = 1 << 23  # whole numbers up to twice this are exact in float32, and an adder kernel passes twice its sums


class Requantisation(nn.Module):
    """Sums int32 (N, C, H, W) to codes uint8, 0..highest: by channel multiplier, offset, shift, factor, int32 (C,).

    ``pre``: see the head of this file.
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
        highest: int = 255,
        pre: int = 0,
    ):
        super().__init__()
        self.highest, self.pre = highest, pre
        for name, value in (("multiplier", multiplier), ("offset", offset), ("shift", shift), ("factor", factor)):
            self.register_buffer(name, value)

    def forward(self, sums: Tensor, shortcut: Tensor | None = None) -> Tensor:
        total = (sums >> self.pre) * _by_channel(self.multiplier) + _by_channel(self.offset)
        if shortcut is not None and self.factor is not None:
            total += shortcut.int() * _by_channel(self.factor)
        return (total >> _by_channel(self.shift)).clamp_(0, self.highest).to(torch.uint8)


class Logits(nn.Module):
    """Sums int32 (N, C, H, W) to float32: per channel a gain and a bias, float32 (C,)."""

    gain: Tensor
    bias: Tensor

    def __init__(self, gain: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("gain", gain)
        self.register_buffer("bias", bias)

    def forward(self, sums: Tensor) -> Tensor:
        return sums.float() * _by_channel(self.gain) + _by_channel(self.bias)


class Step(nn.Module):
    """One step: it makes a value out of those that ``sources`` number."""

    def __init__(self, sources: Sequence[int]):
        super().__init__()
        self.sources = tuple(sources)


class Layer(Step):
    """A convolution of one kind and what becomes of its sums. A fully connected layer has the kernel of its input.

    Args:
        kind: see the head of this file.
        sources: the input and, where the requantisation has a factor, the shortcut.
        weight: (C_out, C_in, kh, kw), uint8 for an adder layer, else int8; of a binary layer -1 or 1.
        zero: the code of 0 in each input channel, uint8 (C_in,): what padding holds.
        epilogue: Requantisation, or Logits for the last layer.
    """

    weight: Tensor
    zero: Tensor

    def __init__(
        self,
        kind: Kind,
        sources: Sequence[int],
        weight: Tensor,
        zero: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        epilogue: Requantisation | Logits,
    ):
        super().__init__(sources)
        self.kind, self.stride, self.padding, self.epilogue = kind, stride, padding, epilogue
        self.register_buffer("weight", weight)
        self.register_buffer("zero", zero)

    def sums(self, x: Tensor) -> Tensor:
        """The sums of codes ``x``, int32."""
        return layer_sums(self.kind, x, self.weight, self.zero, self.stride, self.padding)

    def forward(self, x: Tensor, *shortcut: Tensor) -> Tensor:
        return self.epilogue(self.sums(x), *shortcut)


class MaxPool(Step):
    """The largest code of each window; codes rise with what they stand for, and padding holds the lowest."""

    def __init__(self, sources: Sequence[int], kernel: int, stride: int, padding: int):
        super().__init__(sources)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.float(), self.kernel, self.stride, self.padding).to(torch.uint8)


class AveragePool(Step):
    """Each channel's sum over windows of ``kernel``, without padding, requantised."""

    def __init__(
        self, sources: Sequence[int], kernel: tuple[int, int], stride: tuple[int, int], epilogue: Requantisation
    ):
        super().__init__(sources)
        self.kernel, self.stride, self.epilogue = kernel, stride, epilogue

    def forward(self, x: Tensor) -> Tensor:
        return self.epilogue(F.avg_pool2d(x.double(), self.kernel, self.stride, divisor_override=1).int())


class Program(nn.Module):
    """A quantised network: input codes, steps, logits.

    ``forward`` takes images as the network takes them, float32 (N, C, H, W), and gives logits (N, classes); uint8
    images are codes. ``shape`` (C, H, W), ``scale``, ``zero`` and ``highest``, the largest code, are the input's; scale
    and zero are float32 (C,), and a zero may lie between two codes.
    """

    scale: Tensor
    zero: Tensor

    def __init__(
        self, shape: tuple[int, int, int], scale: Tensor, zero: Tensor, steps: Sequence[Step], highest: int = 255
    ):
        super().__init__()
        self.shape, self.highest = shape, highest
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.steps = nn.ModuleList(steps)

    def codes(self, images: Tensor) -> Tensor:
        """The codes of float images, uint8."""
        codes = images / _by_channel(self.scale) + _by_channel(self.zero)
        return codes.round_().clamp_(0, self.highest).to(torch.uint8)

    def save(self, path: str | Path) -> None:
        """Write the program's file, ``.tadder``. Raises UserError where the disk refuses."""
        from torchadder.quant.file import write  # which knows every step

        write(self, Path(path))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"expected images (N, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}")
        values = [images if images.dtype == torch.uint8 else self.codes(images)]
        for step in self.steps:
            values.append(step(*(values[i] for i in step.sources)))  # type: ignore[union-attr]  # each is a Step
        return values[-1].flatten(1)


def largest_sum(kind: Kind, weight: Tensor) -> int:
    """The largest magnitude of a layer's sums over uint8 codes; of fewer bits too, since images may be any codes."""
    if kind == "conv":
        return int(weight.int().abs().sum((1, 2, 3)).max()) * 255
    return weight[0].numel() * (255 if kind == "adder" else 1)


def layer_sums(
    kind: Kind, x: Tensor, weight: Tensor, zero: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """What a layer adds up, int32 (N, C_out, H, W), for codes x uint8. See Layer."""
    wide = torch.float32 if largest_sum(kind, weight) < EXACT else torch.float64
    if kind == "binary":
        signs = torch.where(x >= zero.view(-1, 1, 1), 1.0, -1.0)
        return F.conv2d(signs, weight.float(), None, stride, padding).int()
    rows, columns = padding
    if rows or columns:
        padded = zero.view(1, -1, 1, 1).expand(len(x), -1, x.shape[2] + 2 * rows, x.shape[3] + 2 * columns).clone()
        padded[:, :, rows : rows + x.shape[2], columns : columns + x.shape[3]] = x
        x = padded
    if kind == "adder":
        return -adder_conv2d(x.to(wide), weight.to(wide), None, stride).int()
    return F.conv2d(x.to(wide), weight.to(wide), None, stride).int()


def _by_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)

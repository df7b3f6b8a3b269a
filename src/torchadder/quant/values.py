"""Describe the values of a program that is being built, and turn real weights and scales into its integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchadder.quant.steps import Kind, Requantization, Sides, Step

Shape = tuple[int, int, int]

LARGEST_SHIFT = 24  # fraction bits of an epilogue: a cap for channels whose numbers are so small that more would fit
ACCUMULATOR_BITS = 21  # largest accumulators after pre_shift: 32-bit arithmetic leaves 9 bits for the multiplier
TINY = 1e-30  # least scale of weights, against division by 0


@dataclass(frozen=True)
class QuantizedValue:
    """Describe value ``index`` of the program, of ``shape`` (C, H, W): real = scale * (q - zero_point).

    scale and zero_point are float64 (1,) or (C,); (C * H * W,) where a normalisation of flattened values was folded.
    The outermost pixels of ``shape`` may be zeros that the program's value lacks, ``margin`` of them at each side. With
    ``selection``, the channels are some of the program's value: int8 (C, its channels), a 1 in each row.
    """

    index: int
    shape: Shape
    scale: Tensor
    zero_point: Tensor
    margin: Sides = (0, 0, 0, 0)
    selection: Tensor | None = None

    def by_filter(self, numbers: Tensor, weight: Tensor) -> Tensor:
        """Return ``numbers``, of the length of a scale, in a shape that broadcasts to that of filters."""
        if len(numbers) == 1:
            return numbers.view(1, 1, 1, 1)
        if len(numbers) != self.shape[0]:
            return numbers.view(1, *self.shape)
        groups = len(numbers) // weight.shape[1]
        return numbers.view(groups, -1, 1, 1).repeat_interleave(len(weight) // groups, 0)


@dataclass(frozen=True)
class Accumulator:
    """Describe the accumulators of a step whose epilogue is not known yet, of ``shape`` (C, H, W).

    real = scale * accumulator + bias, plus the real numbers of ``shortcut``; scale and bias are float64 (C,).
    """

    step: Callable[[Sequence[int], Any], Step]
    sources: tuple[int, ...]  # the numbers of the values that are read
    shape: Shape
    largest: int  # magnitude of an accumulator
    scale: Tensor
    bias: Tensor
    node: fx.Node  # the node whose real values these are
    is_layer: bool = True  # another step adds no shortcut and gives no logits
    shortcut: QuantizedValue | None = None


def requantization(
    scale: Tensor,
    bias: Tensor,
    largest: int,
    to_scale: Tensor,
    to_zero_point: Tensor,
    qmax: int,
    shortcut: QuantizedValue | None = None,
) -> Requantization:
    """Return the integers that turn accumulators, real = scale * accumulator + bias, into quantized values.

    The shift of each channel is as large as 32-bit arithmetic allows for accumulators up to ``largest``. Accumulators
    of more than ACCUMULATOR_BITS lose their lowest bits; the bias makes up for the mean loss. The offset makes up for
    the rounding of the multiplier in the middle of the range 0..qmax.
    """
    pre_shift = max(0, largest.bit_length() - ACCUMULATOR_BITS)
    bias, scale = bias + scale * (2**pre_shift - 1) / 2, scale * 2**pre_shift
    largest = (largest >> pre_shift) + 1
    multiplier, offset = scale / to_scale, bias / to_scale + to_zero_point
    factor = torch.zeros_like(multiplier)
    if shortcut is not None:
        factor = (shortcut.scale / to_scale).expand_as(multiplier)
        offset = offset - factor * shortcut.zero_point
    span = multiplier.abs() * largest + offset.abs() + factor.abs() * 255 + 1
    shift = torch.floor(31 - torch.log2(span)).sub_(1).clamp_(0, LARGEST_SHIFT)
    one = 2.0**shift
    rounded = (multiplier * one).round()
    middle = ((qmax / 2 - offset) / multiplier).nan_to_num(0).clamp(-largest, largest)
    corrected = (offset * one + (multiplier * one - rounded) * middle + 0.5 * one).floor()
    return Requantization(
        multiplier=rounded.to(torch.int32),
        offset=corrected.to(torch.int32),
        shift=shift.to(torch.int32),
        factor=None if shortcut is None else (factor * one).round().to(torch.int32),
        qmax=qmax,
        pre_shift=pre_shift,
    )


def quantize_weight(
    kind: Kind, weight: Tensor, x: QuantizedValue, qmax: int, recenter: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return filters (C_out, C_in, kh, kw) quantized, and scale and bias of their accumulators, float64 (C_out,)."""
    if kind == "adder":
        q, clipped = quantize_adder_weight(weight, x, qmax)
        bias = weight.abs().sum((1, 2, 3)) * recenter - (weight - clipped).abs().sum((1, 2, 3))
        return q.to(torch.uint8), -x.scale.expand(len(weight)), bias
    if kind == "binary":
        q, scale = torch.where(weight >= 0, 1, -1), weight.abs().mean((1, 2, 3))
        return q.to(torch.int8), scale, torch.zeros_like(scale)
    q, scale = quantize_conv_weight(weight, x)
    return q.to(torch.int8), scale, -scale * (q * x.by_filter(x.zero_point, weight)).sum((1, 2, 3))


def quantize_adder_weight(weight: Tensor, x: QuantizedValue, qmax: int) -> tuple[Tensor, Tensor]:
    """Return filters (C_out, C_in, kh, kw) quantized with the scale of their input x, and clamped to its range.

    Clamping loses nothing, since no x lies beyond the range: |x - w| = |x - clip(w)| + |w - clip(w)|. Both results
    have the shape and dtype of ``weight``.
    """
    clipped = weight.clamp(float(-x.zero_point * x.scale), float((qmax - x.zero_point) * x.scale))
    return (clipped / x.scale + x.zero_point).round().clamp(0, qmax), clipped


def quantize_conv_weight(weight: Tensor, x: QuantizedValue) -> tuple[Tensor, Tensor]:
    """Return filters quantized to -127..127, and the scale of their accumulators, float64 (C_out,)."""
    scaled = weight * x.by_filter(x.scale, weight)
    scale = scaled.abs().amax((1, 2, 3)).clamp(min=TINY) / 127
    return (scaled / scale.view(-1, 1, 1, 1)).round(), scale


def scale_and_zero_point(low: float, high: float, qmax: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, float64 (1,), of values 0..qmax that cover low..high; 0 is one of them exactly."""
    scale = (high - low or 1.0) / qmax  # values that are all 0 have any scale
    return tuple(torch.tensor([v], dtype=torch.double) for v in (scale, round(-low / scale)))  # type: ignore[return-value]

"""Hold a quantized network: the integer program that ``quantize`` makes, and its exact meaning in torch.

Activations are uint8 values q (N, C, H, W) that stand for real = scale * (q - zero_point). Value 0 is the input, value
i + 1 the output of step i. A layer has a 32-bit accumulator for each output:

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
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder import files
from torchadder.errors import UserError
from torchadder.functional import adder_conv2d, autocast
from torchadder.quant import file

Kind = Literal["adder", "conv", "binary"]
Sides = tuple[int, int, int, int]  # top, left, bottom, right
Axes = int | tuple[int, int]  # of rows and of columns
MIN_COMMON = 0.55  # of the ranges of pixels and of calibration images, what both must cover; see decisions.md
EXACT = 1 << 23  # float32 is exact to twice this, and adder kernels compute up to twice an accumulator inside
ON_DISK = {"zero_point": "zero", "scale": "gain"}  # names that a step's tensors have in a file, where they differ


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
        total = (accumulator >> self.pre_shift) * _by_channel(self.multiplier) + _by_channel(self.offset)
        if shortcut is not None and self.factor is not None:
            total += shortcut.int() * _by_channel(self.factor)
        return (total >> _by_channel(self.shift)).clamp_(0, self.qmax).to(torch.uint8)


class Logits(nn.Module):
    """Turn accumulators int32 (N, C, H, W) into float32 by a scale and a bias for each channel, float32 (C,)."""

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, accumulator: Tensor) -> Tensor:
        return accumulator.float() * _by_channel(self.scale) + _by_channel(self.bias)


class Step(nn.Module):
    """Compute one value of the program from those whose numbers are ``sources``."""

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
        self.kind, self.stride, self.dilation, self.groups, self.epilogue = kind, stride, dilation, groups, epilogue
        self.padding = padding
        self.register_buffer("weight", weight)
        self.register_buffer("zero_point", zero_point)

    def accumulate(self, x: Tensor) -> Tensor:
        """Return the accumulators, int32 (N, C_out, H, W), of values ``x``, uint8 (N, C_in, H, W)."""
        axes = self.stride, self.padding, self.dilation, self.groups
        return accumulate(self.kind, x, self.weight, self.zero_point, *axes)

    def forward(self, x: Tensor, *shortcut: Tensor) -> Tensor:
        return self.epilogue(self.accumulate(x), *shortcut)


class MaxPool(Step):
    """Take the largest value of each window, which is the largest real number too; padding is 0, the smallest.

    kernel, stride: one number, or (rows, columns). padding: also (top, left, bottom, right).
    """

    def __init__(self, sources: Sequence[int], kernel: Axes, stride: Axes, padding: Axes | Sides):
        super().__init__(sources)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        padded = _zero_padded(x.float(), four_sides(self.padding))
        return F.max_pool2d(padded, self.kernel, self.stride).to(torch.uint8)


class AveragePool(Step):
    """Requantize the mean of each window of ``kernel`` (rows, columns), of those pixels that are no padding.

    The accumulators are integers, since they are means times a number that all counts of pixels divide, mean_unit.
    """

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
        sums = F.avg_pool2d(_zero_padded(x.double(), sides), self.kernel, self.stride, divisor_override=1)
        return self.epilogue((sums * (mean_unit(counts) // counts.to(x.device))).int())


class Concat(Step):
    """Requantize several values of one height and width, whose channels follow one another."""

    def __init__(self, sources: Sequence[int], epilogue: Requantization):
        super().__init__(sources)
        self.epilogue = epilogue

    def forward(self, *values: Tensor) -> Tensor:
        return self.epilogue(torch.cat(values, 1).int())


class Table(Step):
    """Look up each value in the table of its channel, or in one for all channels: ``table`` is uint8 (C or 1, 256)."""

    table: Tensor

    def __init__(self, sources: Sequence[int], table: Tensor):
        super().__init__(sources)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(self.table), device=x.device).view(-1, 1, 1)
        return self.table[rows, x.long()]


class Program(nn.Module):
    """Run a quantized network in torch: quantize the images, run the steps, return the logits.

    ``forward`` takes images (N, C, H, W), floating point as the network takes them, or with quantized=True uint8, which
    are quantized values already. It returns logits float32 (N, classes). The program of a network of rows (N, C, L) or
    vectors (N, C) takes these, too: its height, or height and width, are 1.

    Attributes:
        shape: (C, H, W) of an image. classes: number of logits.
        scale, zero_point: of the input, float32 (C,); a zero point may lie between two integers.
        qmax: the largest quantized value of the input.
        steps: the Step modules in order.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, shape: tuple[int, int, int], scale: Tensor, zero_point: Tensor, steps: Sequence[Step], qmax: int = 255
    ):
        super().__init__()
        self.shape, self.qmax = shape, qmax
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.steps = nn.ModuleList(steps)

    @property
    def classes(self) -> int:
        return len(self.steps[-1].weight)  # type: ignore[arg-type]  # the last step is a Layer

    def quantize(self, images: Tensor) -> Tensor:
        """Return the quantized values, uint8, of float images (N, C, ...) with any axes after the channels."""
        axes = images.dim() - 2
        q = images.float() / _by_channel(self.scale, axes) + _by_channel(self.zero_point, axes)
        return q.round_().clamp_(0, self.qmax).nan_to_num_(0).to(torch.uint8)

    @torch.no_grad()
    def forward(self, images: Tensor, quantized: bool = False) -> Tensor:
        self._check_dtype()
        if not isinstance(images, Tensor):
            raise TypeError(f"images are of type {type(images).__name__}: expected a tensor")
        if images.layout is not torch.strided or images.is_nested:
            raise TypeError("expected images in a dense tensor, got a sparse or nested one")
        if autocast.is_on(images):  # it would round the integers
            with torch.autocast(images.device.type, enabled=False):
                return self(images, quantized)
        images = with_all_axes(images, self.shape)
        if quantized != (images.dtype == torch.uint8) or not (quantized or images.is_floating_point()):
            expected = "uint8 with quantized=True" if quantized else "floating point, or uint8 with quantized=True"
            raise TypeError(f"images are {images.dtype}: expected {expected}")
        values = [images if quantized else self.quantize(images)]
        for step in self.steps:
            values.append(step(*(values[i] for i in step.sources)))  # type: ignore[union-attr]  # each is a Step
        return values[-1].flatten(1)

    def save(
        self,
        path: str | Path,
        *,
        mean: file.ByChannel | None = None,
        std: file.ByChannel | None = None,
        classes: file.Classes | None = None,
        part: str = "whole",
        about: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Write a ``.tadder`` file that Engine, the command line and the C interface run.

            program.save("digits.tadder", mean=[0.1307], std=[0.3081], classes=["zero", "one", ...])

        Args:
            path: the file; an old one is replaced whole or not at all.
            mean, std: one number a channel; the network was trained on (pixel / 255 - mean) / std. predict and the C
                example need both. Images of one channel are grey, images of three are RGB.
            classes: the names of the classes by label, or a dict name -> label; without them predict prints numbers.
            part: "whole" resizes an image file to the size of the program, "centre" crops its centre first, as
                evaluation on ImageNet does.
            about: further text and numbers to keep, by name; ``Engine.about`` returns them.

        Raises:
            UserError: an argument does not fit the program, or the file cannot be written.
        """
        for name, value in (about or {}).items():
            if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"about: {name}={value!r} is neither text nor a finite number")
        images = file.describe_images(self.shape[0], self.classes, mean, std, classes, part)
        if mean is not None and std is not None:
            self._compare_with_pixels(mean, std)
        content = self.to_bytes({**(about or {}), **images})
        try:
            files.write_bytes(Path(path), content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def _compare_with_pixels(self, mean: file.ByChannel, std: file.ByChannel) -> None:
        """Warn where pixels normalised by ``mean`` and ``std`` lie elsewhere than the images of the calibration."""
        mean, std = (torch.as_tensor(numbers, dtype=torch.float32).flatten().cpu() for numbers in (mean, std))
        black, white = (0 - mean) / std, (1 - mean) / std
        scale, zero_point = self.scale.cpu(), self.zero_point.cpu()
        low, high = -zero_point * scale, (self.qmax - zero_point) * scale
        common = torch.minimum(high, white) - torch.maximum(low, black)
        share = common / (torch.maximum(high, white) - torch.minimum(low, black))
        if not (share > MIN_COMMON).any():
            calibrated, pixels = (f"{a.min():.2g} to {b.max():.2g}" for a, b in ((low, high), (black, white)))
            warnings.warn(
                f"the images of the calibration cover {calibrated}, but pixels with this mean and std are {pixels}: "
                "expected the same normalisation for both",
                stacklevel=3,
            )

    def to_bytes(self, about: Mapping[str, str | int | float] | None = None) -> bytes:
        """Return the content of the program's file; ``about`` is kept in it as it is."""
        self._check_dtype()
        tensors = {"input.scale": self.scale, "input.zero": self.zero_point}
        for number, step in enumerate(self.steps):
            for name, value in step.named_buffers():
                name = name.rpartition(".")[2]
                tensors[f"{number}.{ON_DISK.get(name, name)}"] = value
        head = {
            "version": file.VERSION,
            "input": {"shape": [*self.shape], "highest": self.qmax},
            "steps": [_description(step) for step in self.steps],
            "about": dict(about or {}),
        }
        return file.pack(head, tensors)

    def _check_dtype(self) -> None:
        if self.scale.dtype is not torch.float32:
            raise UserError(f"the program was cast to {self.scale.dtype}, which rounds its numbers: quantize again")

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Return the program of a ``.tadder`` file, which may come from a stranger: the native engine checks it first.

        Raises UserError where the file cannot be read or is damaged.
        """
        content = file.read(path)
        file.check(content, path)
        head, tensors = file.unpack(content, path)
        steps = [_step(number, about, tensors) for number, about in enumerate(head["steps"])]
        channels, height, width = head["input"]["shape"]
        scale, zero_point = tensors["input.scale"], tensors["input.zero"]
        return cls((channels, height, width), scale, zero_point, steps, head["input"]["highest"])


def with_all_axes(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images (N, C, H, W), of which a height of 1, and with it a width of 1, may be left out.

    Raises UserError where they do not have the shape (C, H, W).
    """
    axes = 3 - (shape[1] == 1) - (shape[1:] == (1, 1))
    if tuple(images.shape[1:]) not in (shape, *[(shape[0], *shape[2:])[:length] for length in range(axes, 3)]):
        raise UserError(f"expected images (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    return images.view(len(images), *shape) if images.dim() < 4 else images


def largest_accumulator(kind: Kind, weight: Tensor) -> int:
    """Return the largest magnitude that a layer's accumulator can have, for any uint8 input."""
    if kind == "conv":
        return int(weight.int().abs().sum((1, 2, 3)).max()) * 255
    return weight[0].numel() * (255 if kind == "adder" else 1)


def accumulate(
    kind: Kind,
    x: Tensor,
    weight: Tensor,
    zero_point: Tensor,
    stride: tuple[int, int],
    padding: Sides | tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return a layer's accumulators, int32 (N, C_out, H, W), for values ``x``, uint8 (N, C_in, H, W). See Layer."""
    exact = torch.float32 if largest_accumulator(kind, weight) < EXACT else torch.float64
    top, left, bottom, right = four_sides(padding)
    rows, columns = x.shape[2:]
    size = len(x), -1, rows + top + bottom, columns + left + right
    if kind == "binary":
        x = (x >= _by_channel(zero_point)).to(torch.int8) * 2 - 1
        padded = torch.zeros_like(zero_point, dtype=torch.int8).view(1, -1, 1, 1).expand(size).clone()
    else:
        padded = zero_point.view(1, -1, 1, 1).expand(size).clone()
    padded[:, :, top : top + rows, left : left + columns] = x
    x, weight = padded.to(exact), weight.to(exact)
    if kind == "adder":
        return -adder_conv2d(x, weight, None, stride, 0, dilation, groups).int()
    return F.conv2d(x, weight, None, stride, 0, dilation, groups).int()


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


def _description(step: Any) -> dict[str, Any]:
    """Return the entry of ``step`` in the head of a file."""
    about: dict[str, Any] = {"sources": [*step.sources]}
    if isinstance(step, Layer):
        about |= {"op": step.kind, "stride": [*step.stride], "padding": [*step.padding]}
        about |= {"dilation": [*step.dilation]} if step.dilation != (1, 1) else {}
        about |= {"groups": step.groups} if step.groups > 1 else {}
    elif isinstance(step, MaxPool):
        about |= {"op": "max_pool", "kernel": step.kernel, "stride": step.stride, "padding": step.padding}
    elif isinstance(step, AveragePool):
        about |= {"op": "average_pool", "kernel": [*step.kernel], "stride": [*step.stride]}
        about |= {"padding": step.padding} if step.padding else {}
    else:
        about |= {"op": "table" if isinstance(step, Table) else "concat"}
    epilogue = getattr(step, "epilogue", None)
    if isinstance(epilogue, Requantization):
        about |= {"highest": epilogue.qmax, "pre": epilogue.pre_shift}
    return about


def _step(number: int, about: dict[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    """Return step ``number`` of a file that the native engine has accepted."""

    def tensor(name: str) -> Tensor:
        return tensors[f"{number}.{name}"]

    def axes(name: str, otherwise: Any) -> Any:
        numbers = about.get(name, otherwise)
        return tuple(numbers) if isinstance(numbers, list) else numbers

    kernel, stride, padding = (axes(name, 0) for name in ("kernel", "stride", "padding"))
    if about["op"] == "max_pool":
        return MaxPool(about["sources"], kernel, stride, padding)
    if about["op"] == "table":
        return Table(about["sources"], tensor("table"))
    epilogue: Requantization | Logits
    if f"{number}.gain" in tensors:
        epilogue = Logits(tensor("gain"), tensor("bias"))
    else:
        multiplier, offset, shift = (tensor(name) for name in ("multiplier", "offset", "shift"))
        factor = tensors.get(f"{number}.factor")
        epilogue = Requantization(multiplier, offset, shift, factor, about["highest"], about["pre"])
    if about["op"] in ("average_pool", "concat"):
        assert isinstance(epilogue, Requantization), "the engine takes no other"
        if about["op"] == "concat":
            return Concat(about["sources"], epilogue)
        return AveragePool(about["sources"], kernel, stride, epilogue, padding)
    dilation, groups = axes("dilation", (1, 1)), about.get("groups", 1)
    weight, zero_point = tensor("weight"), tensor("zero")
    return Layer(about["op"], about["sources"], weight, zero_point, stride, padding, epilogue, dilation, groups)


def _zero_padded(x: Tensor, padding: Sides) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom))


def _by_channel(values: Tensor, axes: int = 2) -> Tensor:
    """Return numbers (C,) in the shape of (C, ...) with so many axes after the channels."""
    return values.view(-1, *[1] * axes)

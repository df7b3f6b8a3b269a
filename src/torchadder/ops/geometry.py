"""Hold the geometry of a convolution in up to three dimensions: checks, output shape, memory format.

The checks are those of torch's own convolution. They must be complete, because kernels trust their shapes.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NARROW = (torch.float16, torch.bfloat16)  # the types of 16 bits
CHANNELS_LAST = {0: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
AXES = {0: "", 1: "L", 2: "H, W", 3: "D, H, W"}


class Geometry(NamedTuple):
    """Hold stride, zero padding and dilation, one number an axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def dims(self) -> int:
        return len(self.stride)

    def unsqueezed(self) -> "Geometry":
        """Return the same convolution with a first axis of size 1: a row of pixels becomes an image of height 1."""
        return Geometry((1, *self.stride), (0, *self.padding), (1, *self.dilation), self.groups)

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """Return (N, C_out, *size) for input (N, C_in, *size) and weight (C_out, C_in / groups, *kernel)."""
        return x.shape[0], weight.shape[0], *self.output_size(x.shape[2:], weight.shape[2:])

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the output, axis by axis, for an input of `size` and a `kernel`."""
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
        """Raise ValueError for a shape, device or option that does not fit, TypeError for a dtype.

        `grad` is the gradient of the output, for the backward operators. All tensors have the dtype of the input; with
        `wide_weights` weight and bias are float32 where the input has 16 bits.
        """
        if self.dims not in AXES:
            raise ValueError(f"stride={tuple(self.stride)} has {self.dims} values: expected at most three")
        for name, values, least in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if len(values) != self.dims:
                raise ValueError(f"{name}={tuple(values)}: expected {self.dims} values, as stride has")
            if not all(isinstance(value, int | torch.SymInt) for value in values):
                raise TypeError(f"{name}={tuple(values)}: expected integers")
            if min(values, default=least) < least:
                raise ValueError(f"{name}={tuple(values)}: expected at least {least}")
        if x.dim() != self.dims + 2:
            raise ValueError(f"input has shape {tuple(x.shape)}: expected {_shape('N', 'C_in', self.dims)}")
        if weight.dim() != self.dims + 2:
            kernel = _shape("C_out", "C_in / groups", self.dims, "k")
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected {kernel}")
        weight_dtype = torch.float32 if wide_weights and x.dtype in NARROW else x.dtype
        for name, tensor, dtype in (
            ("weight", weight, weight_dtype),
            ("bias", bias, weight_dtype),
            ("grad", grad, x.dtype),
        ):
            if tensor is not None and tensor.dtype != dtype:
                advice = "cast one of them" if dtype is x.dtype else f"expected {dtype} beside 16 bits"
                raise TypeError(f"input is {x.dtype} and {name} is {tensor.dtype}: {advice}")
            if tensor is not None and tensor.device != x.device:
                raise ValueError(f"input is on {x.device} and {name} on {tensor.device}: move one of them")
        if min(weight.shape) < 1:
            raise ValueError(f"weight has shape {tuple(weight.shape)}: every size must be at least 1")
        if self.groups < 1 or weight.shape[0] % self.groups:
            raise ValueError(f"groups={self.groups}: expected a positive divisor of the {weight.shape[0]} filters")
        if x.shape[1] != weight.shape[1] * self.groups:
            raise ValueError(
                f"input has {x.shape[1]} channels: weight {tuple(weight.shape)} with groups={self.groups} "
                f"expects {weight.shape[1] * self.groups}"
            )
        output_shape = self.output_shape(x, weight)
        if min(output_shape[2:], default=1) < 1:
            raise ValueError(
                f"kernel {tuple(weight.shape[2:])} with dilation={tuple(self.dilation)} is larger than the "
                f"input {tuple(x.shape[2:])} with padding={tuple(self.padding)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}: expected ({weight.shape[0]},)")
        if grad is not None and grad.shape != output_shape:
            raise ValueError(f"gradient has shape {tuple(grad.shape)}: expected the output's, {output_shape}")


def _shape(first: str, second: str, dims: int, prefix: str = "") -> str:
    axes = [prefix + (axis.lower() if prefix else axis) for axis in AXES[dims].split(", ") if axis]
    return f"({', '.join([first, second, *axes])})"


def by_axis(name: str, value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Return one integer for each axis. Raise ValueError for another count, TypeError for other numbers.

    ``name``: of the parameter, for messages.
    """
    values = tuple(value) * (dims if len(value) == 1 else 1) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name}={values} has {len(values)} values: expected one or {dims}")
    if all(isinstance(number, int | torch.SymInt) for number in values):
        return values
    try:
        return tuple(map(operator.index, values))  # the integers of numpy
    except TypeError:
        raise TypeError(f"{name}={value}: expected integers") from None


def pad_by_name(
    x: Tensor, weight: Tensor, name: str, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and the padding, one number an axis, that padding="same" or "valid" means.

    The padding is the symmetric part. An even kernel needs one more zero at the end of an axis: the input gets it,
    since a padded position is a zero either way. Raise ValueError for another name, and for "same" with a stride.
    """
    nothing = (0,) * len(stride)
    if name == "valid":
        return x, nothing
    if name != "same":
        raise ValueError(f"padding={name!r}: expected integers, 'same' or 'valid'")
    if any(step != 1 for step in stride):
        raise ValueError(f"padding='same' is not defined for stride={stride}: give integers")
    if not x.dim() == weight.dim() == len(stride) + 2:
        return x, nothing  # the operator refuses these shapes
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(size % 2 for size in total):
        x = nn.functional.pad(x, [end for size in reversed(total) for end in (0, size % 2)])
    return x, tuple(size // 2 for size in total)


def pad_by_mode(
    x: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...] | str, dilation: tuple[int, ...], mode: str
) -> Tensor:
    """Return the input padded as torch's layers do it for padding_mode "reflect", "replicate" and "circular".

    With padding="same" and an even kernel, the end of an axis gets one more element than its beginning.
    """
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)]
        sides = [(size // 2, size - size // 2) for size in total]
    else:
        sides = [(size, size) for size in padding]
    return nn.functional.pad(x, [size for both in reversed(sides) for size in both], mode=mode)


def memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return torch's choice for a convolution: channels last if the strides of input or weight are, else contiguous."""
    last = x.dim() > 2 and (is_channels_last(x) or is_channels_last(weight))
    return CHANNELS_LAST[x.dim() - 2] if last else torch.contiguous_format


def is_channels_last(tensor: Tensor) -> bool:
    """Return True if the strides are those of channels last, also for one channel or one pixel, as in torch."""
    if not tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2]):
        return False
    inner = 1  # number of elements that the axes so far span, the channels first
    for axis in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if tensor.stride(axis) < inner:
            return False
        inner = tensor.stride(axis) * tensor.shape[axis]
    return tensor.stride(0) > tensor.stride(1)

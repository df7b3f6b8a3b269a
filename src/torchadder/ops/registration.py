"""The three operators of an adder convolution, registered once with torch.library.

    torchadder::adder_conv2d              Y  from X, W
    torchadder::adder_conv2d_grad_input   dX from dY, X, W
    torchadder::adder_conv2d_grad_weight  dW from dY, X, W

They have no derivative of their own: the gradient rule is torchadder.functional's. Float32 on the CPU runs on the
native kernels; every other dtype and device runs on the plain-torch reference. Outputs keep the memory format
that nn.Conv2d would give them: channels last if the input or the weight is, else contiguous.
"""

import torch
from torch import Tensor

from . import cpu, reference
from .geometry import Conv2dGeometry

WEIGHT_RULES = ("full", "sign")
INPUT_RULES = ("hardtanh", "sign", "full")

_library = torch.library.Library("torchadder", "DEF")
_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
_library.define(f"adder_conv2d(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, bool recenter) -> Tensor")
_library.define(f"adder_conv2d_grad_input(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule) -> Tensor")
_library.define(f"adder_conv2d_grad_weight(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule) -> Tensor")

adder_conv2d = torch.ops.torchadder.adder_conv2d.default
adder_conv2d_grad_input = torch.ops.torchadder.adder_conv2d_grad_input.default
adder_conv2d_grad_weight = torch.ops.torchadder.adder_conv2d_grad_weight.default


def memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """nn.Conv2d's choice: channels last if the input's or the weight's strides are, else contiguous."""
    return torch.channels_last if _is_channels_last(x) or _is_channels_last(weight) else torch.contiguous_format


def _is_channels_last(tensor: Tensor) -> bool:
    # Strides decide, as in torch: one channel or one pixel is dense in either format, but strided differently.
    if not tensor.is_contiguous(memory_format=torch.channels_last):
        return False
    image, channel, row, column = tensor.stride()
    _, channels, rows, columns = tensor.shape
    return column >= channel * channels and row >= column * columns and image >= row * rows > channel


def _geometry(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Conv2dGeometry:
    return Conv2dGeometry(tuple(stride), tuple(padding), tuple(dilation), groups)  # type: ignore[arg-type]


_accepted: set[tuple[object, ...]] = set()


def _check(
    geometry: Conv2dGeometry, x: Tensor, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> None:
    """geometry.check of the same arguments, remembered: it would take a tenth of a small layer's time."""
    tensors = (None if t is None else (t.shape, t.dtype, t.device) for t in (x, weight, bias, grad))
    key = (geometry, *tensors)
    if key in _accepted:
        return
    geometry.check(x, weight, bias, grad)
    if len(_accepted) >= 4096:
        _accepted.clear()
    _accepted.add(key)


def _check_rule(rule: str, allowed: tuple[str, ...]) -> None:
    if rule not in allowed:
        raise ValueError(f"gradient rule is {rule!r}: choose one of {', '.join(allowed)}")


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    recenter: bool,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, groups)
    _check(geometry, x, weight, bias)
    layout = memory_format(x, weight)
    if cpu.can_run(x):
        return cpu.forward(x, weight, bias, geometry, recenter, layout)
    y = reference.forward(x, weight, geometry, recenter)
    return (y if bias is None else y + bias[:, None, None]).contiguous(memory_format=layout)


def _grad_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    rule: str,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, groups)
    _check(geometry, x, weight, grad=grad)
    _check_rule(rule, INPUT_RULES)
    layout = memory_format(x, weight)
    if rule == "full":  # dX = sum_o (W[o] - X) * dY[o]: a transposed convolution and a rank-one correction
        ones = torch.ones_like(weight)
        straight, total = (_convolution_backward(grad, x, w, geometry, 0) for w in (weight, ones))
        return (straight - x * total).contiguous(memory_format=layout)
    if cpu.can_run(x):
        return cpu.grad_input(grad, x, weight, geometry, rule, layout)
    return reference.grad_input(grad, x, weight, geometry, rule).contiguous(memory_format=layout)


def _grad_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    rule: str,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, groups)
    _check(geometry, x, weight, grad=grad)
    _check_rule(rule, WEIGHT_RULES)
    layout = memory_format(weight, weight)
    if rule == "sign":
        if cpu.can_run(x):
            return cpu.grad_weight_sign(grad, x, weight, geometry, layout)
        return reference.grad_weight_sign(grad, x, weight, geometry).contiguous(memory_format=layout)
    # dW = sum over positions of (X - W) * dY: a convolution's weight gradient and a rank-one correction
    if x.shape[2:] == weight.shape[2:] == (1, 1) and geometry.padding == (0, 0) and groups == 1:
        straight = torch.mm(grad.flatten(1).t(), x.flatten(1)).view_as(weight)
    else:
        straight = _convolution_backward(grad, x, weight, geometry, 1)
    total = grad.sum((0, 2, 3))[:, None, None, None]
    return torch.addcmul(straight, weight, total, value=-1).contiguous(memory_format=layout)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Conv2dGeometry, which: int) -> Tensor:
    """PyTorch's own convolution gradient: of the input (which=0) or of the weight (which=1)."""
    stride, padding, dilation, groups = geometry
    options = (stride, padding, dilation, False, (0, 0), groups, [which == 0, which == 1, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[which]


_library.impl("adder_conv2d", _forward, "CompositeExplicitAutograd")
_library.impl("adder_conv2d_grad_input", _grad_input, "CompositeExplicitAutograd")
_library.impl("adder_conv2d_grad_weight", _grad_weight, "CompositeExplicitAutograd")


@torch.library.register_fake("torchadder::adder_conv2d", lib=_library)
def _(x, weight, bias, stride, padding, dilation, groups, recenter):  # type: ignore[no-untyped-def]
    geometry = _geometry(stride, padding, dilation, groups)
    geometry.check(x, weight, bias)
    return torch.empty_like(x.new_empty(geometry.output_shape(x, weight)), memory_format=memory_format(x, weight))


@torch.library.register_fake("torchadder::adder_conv2d_grad_input", lib=_library)
def _(grad, x, weight, stride, padding, dilation, groups, rule):  # type: ignore[no-untyped-def]
    _geometry(stride, padding, dilation, groups).check(x, weight, grad=grad)
    return torch.empty_like(x, memory_format=memory_format(x, weight))


@torch.library.register_fake("torchadder::adder_conv2d_grad_weight", lib=_library)
def _(grad, x, weight, stride, padding, dilation, groups, rule):  # type: ignore[no-untyped-def]
    _geometry(stride, padding, dilation, groups).check(x, weight, grad=grad)
    return torch.empty_like(weight, memory_format=memory_format(weight, weight))

"""The three operators of an adder convolution, registered once with torch.library.

    torchadder::adder_conv              Y  from X, W
    torchadder::adder_conv_grad_input   dX from dY, X, W
    torchadder::adder_conv_grad_weight  dW from dY, X, W

As many dimensions as stride, padding and dilation have numbers, at most three; none is a fully connected layer. The
derivative is the gradient rule that adder_conv names; torchadder.functional registers it. Float32 on the CPU runs on
the native kernels, float32 and 16 bits on a GPU on those of ops.gpu; all else runs on the plain-torch reference. Input,
output and their gradients have one dtype, weight, bias and their gradients too: the same, or float32 where the images
have 16 bits, which must be recentred. Outputs keep the memory format that torch's convolution would give them: channels
last if the input or the weight is, else contiguous.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, gpu, reference
from .geometry import NARROW, Geometry
from .plan import check, memory_format, plan_of

WEIGHT_RULES = ("full", "sign")
INPUT_RULES = ("hardtanh", "sign", "full")

library = torch.library.Library("torchadder", "FRAGMENT")
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
library.define(
    f"adder_conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, bool recenter, "
    'str weight_rule="full", str input_rule="hardtanh") -> Tensor'
)
library.define(f"adder_conv_grad_input(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule) -> Tensor")
library.define(f"adder_conv_grad_weight(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule) -> Tensor")


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recenter: bool) -> Tensor:
    """Y of torchadder::adder_conv, without the dispatcher."""
    check_recentred(x, recenter)
    plan = plan_of(geometry, x, weight, bias)
    if plan.native:
        return cpu.forward(x, weight, bias, plan, recenter)
    if geometry.dims == 1:  # a row of pixels is an image of height 1
        return forward(x.unsqueeze(2), weight.unsqueeze(2), bias, geometry.lifted(), recenter).squeeze(2)
    if gpu.runs(x):
        return gpu.forward(x, weight, bias, geometry, recenter, plan.layout)
    if x.dtype in NARROW:
        return forward(x.float(), weight, bias, geometry, recenter).to(x.dtype)
    y = reference.forward(x, weight, geometry, recenter)
    if bias is not None:
        y += bias.reshape(-1, *[1] * geometry.dims)
    return y.contiguous(memory_format=plan.layout)


def grad_input(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """dX of torchadder::adder_conv_grad_input, without the dispatcher."""
    plan = plan_of(geometry, x, weight, grad=grad)
    if rule not in INPUT_RULES:
        raise _no_such_rule(rule, INPUT_RULES)
    if geometry.dims == 1:
        grad, x, weight = (t.unsqueeze(2) for t in (grad, x, weight))
        return grad_input(grad, x, weight, geometry.lifted(), rule).squeeze(2)
    if x.dtype in NARROW and (rule == "full" or not gpu.runs(x)):
        return grad_input(grad.float(), x.float(), weight, geometry, rule).to(x.dtype)
    if rule == "full":  # dX = sum_o (W[o] - X) * dY[o]: a transposed convolution and a rank-one correction
        ones = torch.ones_like(weight)
        straight, total = (_convolution_backward(grad, x, w, geometry, 0) for w in (weight, ones))
        return (straight - x * total).contiguous(memory_format=plan.layout)
    if plan.native:
        return cpu.grad_input(grad, x, weight, plan, rule)
    if gpu.runs(x):
        return gpu.grad_input(grad, x, weight, geometry, rule, plan.layout)
    return reference.grad_input(grad, x, weight, geometry, rule).contiguous(memory_format=plan.layout)


def grad_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """dW of torchadder::adder_conv_grad_weight, without the dispatcher."""
    plan = plan_of(geometry, x, weight, grad=grad)
    if rule not in WEIGHT_RULES:
        raise _no_such_rule(rule, WEIGHT_RULES)
    if geometry.dims == 1:
        grad, x, weight = (t.unsqueeze(2) for t in (grad, x, weight))
        return grad_weight(grad, x, weight, geometry.lifted(), rule).squeeze(2)
    if rule == "sign" and gpu.runs(x):
        return gpu.grad_weight_sign(grad, x, weight, geometry, plan.weight_layout)
    if x.dtype in NARROW:
        return grad_weight(grad.float(), x.float(), weight, geometry, rule)
    if rule == "sign":
        if plan.native:
            return cpu.grad_weight_sign(grad, x, weight, plan)
        dw = reference.grad_weight_sign(grad, x, weight, geometry)
        return dw.contiguous(memory_format=plan.weight_layout)
    # dW = sum over positions of (X - W) * dY: a convolution's weight gradient and a rank-one correction
    pixels = (1,) * geometry.dims
    if x.shape[2:] == weight.shape[2:] == pixels and not any(geometry.padding) and geometry.groups == 1:
        straight = torch.mm(grad.flatten(1).t(), x.flatten(1)).view_as(weight)
    else:
        straight = _convolution_backward(grad, x, weight, geometry, 1)
    total = grad.sum((0, *range(2, grad.dim()))).reshape(-1, 1, *pixels)
    return torch.addcmul(straight, weight, total, value=-1).contiguous(memory_format=plan.weight_layout)


def check_recentred(x: Tensor, recenter: bool) -> None:
    """Raise TypeError where outputs would be rounded to 16 bits that are not small."""
    if x.dtype in NARROW and not recenter:
        raise TypeError(
            f"{x.dtype} input: adder layers compute in float32 (their outputs, all negative, are too large for 16 "
            "bits); cast input and weight with .float(), use autocast, or keep the outputs small with recenter=True"
        )


def _no_such_rule(rule: str, allowed: tuple[str, ...]) -> ValueError:
    return ValueError(f"gradient rule is {rule!r}: choose one of {', '.join(allowed)}")


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    """PyTorch's own convolution gradient: of the input (which=0) or of the weight (which=1)."""
    if geometry.dims == 0:
        grad, x, weight = (t[:, :, None] for t in (grad, x, weight))
        return _convolution_backward(grad, x, weight, Geometry((1,), (0,), (1,), geometry.groups), which).squeeze(2)
    stride, padding, dilation, groups = geometry
    options = (stride, padding, dilation, False, [0] * geometry.dims, groups, [which == 0, which == 1, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[which]


Axes = Sequence[int]


def _geometry(stride: Axes, padding: Axes, dilation: Axes, groups: int) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _check_devices(a: Tensor, b: Tensor, c: Tensor | None) -> None:
    for other in (b, c):
        if other is not None and other.device != a.device:
            raise ValueError(f"tensors are on {a.device} and on {other.device}: move one of them")


def _adder_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    groups: int,
    recenter: bool,
    weight_rule: str = "full",
    input_rule: str = "hardtanh",
) -> Tensor:
    _check_devices(x, w, b)
    return forward(x, w, b, _geometry(stride, padding, dilation, groups), recenter)


def _adder_conv_grad_input(
    grad: Tensor, x: Tensor, w: Tensor, stride: Axes, padding: Axes, dilation: Axes, groups: int, rule: str
) -> Tensor:
    _check_devices(grad, x, w)
    return grad_input(grad, x, w, _geometry(stride, padding, dilation, groups), rule)


def _adder_conv_grad_weight(
    grad: Tensor, x: Tensor, w: Tensor, stride: Axes, padding: Axes, dilation: Axes, groups: int, rule: str
) -> Tensor:
    _check_devices(grad, x, w)
    return grad_weight(grad, x, w, _geometry(stride, padding, dilation, groups), rule)


library.impl("adder_conv", _adder_conv, "CompositeExplicitAutograd")
library.impl("adder_conv_grad_input", _adder_conv_grad_input, "CompositeExplicitAutograd")
library.impl("adder_conv_grad_weight", _adder_conv_grad_weight, "CompositeExplicitAutograd")


@torch.library.register_fake("torchadder::adder_conv", lib=library)
def _(x, weight, bias, stride, padding, dilation, groups, recenter, *rules):  # type: ignore[no-untyped-def]
    geometry = _geometry(stride, padding, dilation, groups)
    check_recentred(x, recenter)
    check(geometry, x, weight, bias)
    return _fake(x.new_empty(geometry.output_shape(x, weight)), x, weight)


@torch.library.register_fake("torchadder::adder_conv_grad_input", lib=library)
def _(grad, x, weight, stride, padding, dilation, groups, rule):  # type: ignore[no-untyped-def]
    check(_geometry(stride, padding, dilation, groups), x, weight, grad=grad)
    return _fake(x, x, weight)


@torch.library.register_fake("torchadder::adder_conv_grad_weight", lib=library)
def _(grad, x, weight, stride, padding, dilation, groups, rule):  # type: ignore[no-untyped-def]
    check(_geometry(stride, padding, dilation, groups), x, weight, grad=grad)
    return _fake(weight, weight, weight)


def _fake(like: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """An empty tensor of that shape, in the memory format of a result."""
    if like.dim() == 3:
        return _fake(*(t.unsqueeze(2) for t in (like, x, weight))).squeeze(2)
    return torch.empty_like(like, memory_format=memory_format(x, weight))

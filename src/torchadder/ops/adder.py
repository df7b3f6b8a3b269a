"""Register the three operators of an adder convolution: schemas, checks, backends, the gradient and torch.vmap.

    torchadder::adder_conv              Y  from X, W
    torchadder::adder_conv_grad_input   dX from dY, X, W
    torchadder::adder_conv_grad_weight  dW from dY, X, W

The number of spatial dimensions is the length of stride, padding and dilation: 0 (a fully connected layer) to 3.
adder_conv has two gradient rules as arguments. They are the method's own choice and not the derivative of the L1
distance (paper, section 3.2):

    dW[o, k] = sum over positions of (X - W[o, k]) * dY[o]               weight_rule="full"
    dX[k]    = sum over o of HardTanh(W[o, k] - X[k]) * dY[o]            input_rule="hardtanh"

"sign" is the true derivative in both, and input_rule="full" has W[o, k] - X[k] unclamped. numbers="int8" computes Y and
dX from rounded tensors (ops.rounding), and dW as if they were not rounded. Input and weight are all that is saved for
the backward pass. The two gradient operators have no derivative: a second backward pass is an error.

float32 on the CPU runs on the native kernels, float32 and 16 bits on a GPU on Triton's, everything else on the
plain-torch reference. Input, output and their gradients have one dtype. Weight, bias and their gradients have it
too, or float32 beside 16-bit images, which need recenter=True. Outputs have the memory format that torch's convolution
gives them: channels last if the strides of input or weight are, else contiguous.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import cpu, reference, rounding, triton
from .convolution import convolution_backward
from .geometry import NARROW, Geometry, memory_format
from .gradient import differentiable, once
from .plan import check, plan_call

WEIGHT_RULES = ("full", "sign")
INPUT_RULES = ("hardtanh", "sign", "full")

library = torch.library.Library("torchadder", "FRAGMENT")
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
library.define(
    f"adder_conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, bool recenter, "
    'str weight_rule="full", str input_rule="hardtanh", str numbers="float32") -> Tensor'
)
library.define(
    f"adder_conv_grad_input(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule, "
    'str numbers="float32") -> Tensor'
)
library.define(f"adder_conv_grad_weight(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}, str rule) -> Tensor")

_operator = torch.ops.torchadder.adder_conv.default
_grad_input = torch.ops.torchadder.adder_conv_grad_input.default
_grad_weight = torch.ops.torchadder.adder_conv_grad_weight.default


def adder_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    recenter: bool,
    weight_rule: str = "full",
    input_rule: str = "hardtanh",
    numbers: str = "float32",
) -> Tensor:
    """Call torchadder::adder_conv.

    Shapes: x (N, C_in, *size), weight (C_out, C_in / groups, *kernel), bias (C_out,) -> (N, C_out, *output size).
    Raises ValueError for shapes, devices and options, TypeError for dtypes.
    """
    return _adder_conv(x, weight, bias, *geometry, recenter, weight_rule, input_rule, numbers)


def adder_conv_grad_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, numbers: str = "float32"
) -> Tensor:
    """Call torchadder::adder_conv_grad_input: dX, of shape and dtype of x, from dY (N, C_out, *output size)."""
    return _grad_input(grad, x, weight, *geometry, rule, numbers)


def adder_conv_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    """Call torchadder::adder_conv_grad_weight: dW, of shape and dtype of weight, from dY (N, C_out, *output size)."""
    return _grad_weight(grad, x, weight, *geometry, rule)


# Backends

_INPUT, _WEIGHT = (True, False, False), (False, True, False)  # wanted gradients of a convolution
_IN_WORD = 4  # channels that the integer kernels read at once; with fewer the float kernels are as fast


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, recenter: bool, numbers: str = "float32"
) -> Tensor:
    check_recentred(x, recenter)
    plan = plan_call(geometry, x, weight, bias)
    integers = numbers == "int8" and x.shape[1] >= _IN_WORD and rounding.has_integers(weight, geometry.groups)
    if plan.native and (numbers == "float32" or integers):
        return cpu.forward(x, weight, bias, plan, recenter, numbers)
    if geometry.dims == 1:  # a row of pixels is an image of height 1
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        return _forward(x, weight, bias, geometry.unsqueezed(), recenter, numbers).squeeze(2)
    if numbers != "float32":
        _check_numbers(numbers)
        on_grid, weight, _ = rounding.on_grid(x, weight)
        y = _forward(on_grid, weight, bias, geometry, recenter)
        return y.to(x.dtype).contiguous(memory_format=plan.layout)
    if triton.runs(x):
        return triton.forward(x, weight, bias, geometry, recenter, plan.layout)
    if x.dtype in NARROW:
        return _forward(x.float(), weight, bias, geometry, recenter).to(x.dtype)
    y = reference.forward(x, weight, geometry, recenter)
    if bias is not None:
        y += bias.reshape(-1, *[1] * geometry.dims)
    return y.contiguous(memory_format=plan.layout)


def _backward_input(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str, numbers: str = "float32"
) -> Tensor:
    plan = plan_call(geometry, x, weight, grad=grad)
    _check_rule(rule, INPUT_RULES)
    if geometry.dims == 1:
        grad, x, weight = (t.unsqueeze(2) for t in (grad, x, weight))
        return _backward_input(grad, x, weight, geometry.unsqueezed(), rule, numbers).squeeze(2)
    integers = numbers == "int8" and rule == "hardtanh" and rounding.has_integers(weight, geometry.groups)
    if plan.native and integers:
        return cpu.grad_input(grad, x, weight, plan, rule, numbers)
    if numbers != "float32":
        _check_numbers(numbers)
        on_grid, weight, levels = rounding.on_grid(x, weight, gradient=True)
        grad = rounding.gradient(grad.to(weight.dtype), weight, levels, geometry.groups)
        dx = _backward_input(grad, on_grid, weight, geometry, rule)
        return dx.to(x.dtype).contiguous(memory_format=plan.layout)
    if x.dtype in NARROW and (rule == "full" or not triton.runs(x)):
        return _backward_input(grad.float(), x.float(), weight, geometry, rule).to(x.dtype)
    if rule == "full":  # dX = sum_o (W[o] - X) * dY[o]: a transposed convolution and a rank-one correction
        ones = torch.ones_like(weight)
        product, grad_sum = (convolution_backward(grad, x, w, geometry, _INPUT)[0] for w in (weight, ones))
        return (product - x * grad_sum).contiguous(memory_format=plan.layout)
    if plan.native:
        return cpu.grad_input(grad, x, weight, plan, rule)
    if triton.runs(x):
        return triton.grad_input(grad, x, weight, geometry, rule, plan.layout)
    return reference.grad_input(grad, x, weight, geometry, rule).contiguous(memory_format=plan.layout)


def _backward_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rule: str) -> Tensor:
    plan = plan_call(geometry, x, weight, grad=grad)
    _check_rule(rule, WEIGHT_RULES)
    if geometry.dims == 1:
        grad, x, weight = (t.unsqueeze(2) for t in (grad, x, weight))
        return _backward_weight(grad, x, weight, geometry.unsqueezed(), rule).squeeze(2)
    if rule == "sign" and triton.runs(x):
        return triton.grad_weight_sign(grad, x, weight, geometry, plan.weight_layout)
    if x.dtype in NARROW:
        return _backward_weight(grad.float(), x.float(), weight, geometry, rule)
    if rule == "sign":
        if plan.native:
            return cpu.grad_weight_sign(grad, x, weight, plan)
        dw = reference.grad_weight_sign(grad, x, weight, geometry)
        return dw.contiguous(memory_format=plan.weight_layout)
    # dW = sum over positions of (X - W) * dY: a convolution's weight gradient and a rank-one correction
    one_pixel = (1,) * geometry.dims
    if x.shape[2:] == weight.shape[2:] == one_pixel and not any(geometry.padding) and geometry.groups == 1:
        product = torch.mm(grad.flatten(1).t(), x.flatten(1)).view_as(weight)
    else:
        product = convolution_backward(grad, x, weight, geometry, _WEIGHT)[1]
    grad_sum = grad.sum((0, *range(2, grad.dim()))).reshape(-1, 1, *one_pixel)
    return torch.addcmul(product, weight, grad_sum, value=-1).contiguous(memory_format=plan.weight_layout)


# Registration

Axes = Sequence[int]


def _geometry(stride: Axes, padding: Axes, dilation: Axes, groups: int) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def check_recentred(x: Tensor, recenter: bool) -> None:
    """Raise TypeError for a 16-bit input without recentring: its outputs would be too large for 16 bits."""
    if x.dtype in NARROW and not recenter:
        raise TypeError(
            f"{x.dtype} input: adder layers compute in float32 (their outputs, all negative, are too large for 16 "
            "bits); cast input and weight with .float(), use autocast, or keep the outputs small with recenter=True"
        )


def _check_rule(rule: str, allowed: tuple[str, ...]) -> None:
    if rule not in allowed:
        raise ValueError(f"rule={rule!r}: expected one of {', '.join(allowed)}")


def _check_numbers(numbers: str) -> None:
    if numbers not in rounding.NUMBERS:
        raise ValueError(f"numbers={numbers!r}: expected one of {', '.join(rounding.NUMBERS)}")


def _check_devices(a: Tensor, b: Tensor, c: Tensor | None) -> None:
    for other in (b, c):
        if other is not None and other.device != a.device:
            raise ValueError(f"tensors are on {a.device} and on {other.device}: move one of them")


def _run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    groups: int,
    recenter: bool,
    weight_rule: str = "full",
    input_rule: str = "hardtanh",
    numbers: str = "float32",
) -> Tensor:
    _check_devices(x, weight, bias)
    return _forward(x, weight, bias, _geometry(stride, padding, dilation, groups), recenter, numbers)


def _run_grad_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    groups: int,
    rule: str,
    numbers: str = "float32",
) -> Tensor:
    _check_devices(grad, x, weight)
    return _backward_input(grad, x, weight, _geometry(stride, padding, dilation, groups), rule, numbers)


def _run_grad_weight(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Axes, padding: Axes, dilation: Axes, groups: int, rule: str
) -> Tensor:
    _check_devices(grad, x, weight)
    return _backward_weight(grad, x, weight, _geometry(stride, padding, dilation, groups), rule)


library.impl("adder_conv", _run_forward, "CompositeExplicitAutograd")
library.impl("adder_conv_grad_input", _run_grad_input, "CompositeExplicitAutograd")
library.impl("adder_conv_grad_weight", _run_grad_weight, "CompositeExplicitAutograd")


@torch.library.register_fake("torchadder::adder_conv", lib=library)
def _(x, weight, bias, stride, padding, dilation, groups, recenter, *rules):  # type: ignore[no-untyped-def]
    geometry = _geometry(stride, padding, dilation, groups)
    check_recentred(x, recenter)
    check(geometry, x, weight, bias)
    return _fake(x.new_empty(geometry.output_shape(x, weight)), x, weight)


@torch.library.register_fake("torchadder::adder_conv_grad_input", lib=library)
def _(grad, x, weight, stride, padding, dilation, groups, *rules):  # type: ignore[no-untyped-def]
    check(_geometry(stride, padding, dilation, groups), x, weight, grad=grad)
    return _fake(x, x, weight)


@torch.library.register_fake("torchadder::adder_conv_grad_weight", lib=library)
def _(grad, x, weight, stride, padding, dilation, groups, rule):  # type: ignore[no-untyped-def]
    check(_geometry(stride, padding, dilation, groups), x, weight, grad=grad)
    return _fake(weight, weight, weight)


def _fake(like: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return an empty tensor of the shape of `like`, in the memory format of a result."""
    if like.dim() == 3:
        return _fake(*(t.unsqueeze(2) for t in (like, x, weight))).squeeze(2)
    return torch.empty_like(like, memory_format=memory_format(x, weight))


# The gradient


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.geometry, _, ctx.weight_rule, ctx.input_rule, ctx.numbers = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = once(_grad_input, grad, x, weight, *ctx.geometry, ctx.input_rule, ctx.numbers)
    if ctx.needs_input_grad[1]:
        dw = once(_grad_weight, grad, x, weight, *ctx.geometry, ctx.weight_rule)
    if ctx.needs_input_grad[2]:
        db = grad.sum((0, *range(2, grad.dim())), dtype=weight.dtype)
    return dx, dw, db, *[None] * 8


_adder_conv = differentiable(_operator, _save, _backward, library)


# torch.vmap: a batch of B calls becomes one call. If only the images are batched, they become B * N images. If the
# weights are batched, or are the result, every member of the batch becomes a range of groups: images (B, N, C, ...)
# become (N, B * C, ...), and weights (B, O, ...) become (B * O, ...).

Dims = tuple[int | None, ...]
Result = tuple[Tensor, int]


def _members(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return (B, ...), the batch first; a tensor that is the same for all members is expanded."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_images(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _members(tensor, dim, size).flatten(0, 1)


def _as_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _members(tensor, dim, size).transpose(0, 1).flatten(1, 2)


@torch.library.register_vmap("torchadder::adder_conv", lib=library)
def _(info: Any, in_dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Result:
    size, (x_dim, weight_dim, bias_dim) = info.batch_size, in_dims[:3]
    axes, (groups, *rest) = options[:3], options[3:]
    if weight_dim is None and bias_dim is None:
        y = _operator(_as_images(x, x_dim, size), weight, bias, *options)
        return y.unflatten(0, (size, -1)), 0
    weights = _as_images(weight, weight_dim, size)
    biases = None if bias is None else _as_images(bias, bias_dim, size)
    y = _operator(_as_channels(x, x_dim, size), weights, biases, *axes, size * groups, *rest)
    return y.unflatten(1, (size, -1)), 1


@torch.library.register_vmap("torchadder::adder_conv_grad_input", lib=library)
def _(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Result:
    size, (grad_dim, x_dim, weight_dim) = info.batch_size, in_dims[:3]
    axes, (groups, *rules) = options[:3], options[3:]
    if weight_dim is None:
        images = _as_images(grad, grad_dim, size), _as_images(x, x_dim, size)
        return _grad_input(*images, weight, *options).unflatten(0, (size, -1)), 0
    channels = _as_channels(grad, grad_dim, size), _as_channels(x, x_dim, size)
    dx = _grad_input(*channels, _as_images(weight, weight_dim, size), *axes, size * groups, *rules)
    return dx.unflatten(1, (size, -1)), 1


@torch.library.register_vmap("torchadder::adder_conv_grad_weight", lib=library)
def _(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Result:
    size, (grad_dim, x_dim, weight_dim) = info.batch_size, in_dims[:3]
    *axes, groups, rule = options
    channels = _as_channels(grad, grad_dim, size), _as_channels(x, x_dim, size)
    dw = _grad_weight(*channels, _as_images(weight, weight_dim, size), *axes, size * groups, rule)
    return dw.unflatten(0, (size, -1)), 0

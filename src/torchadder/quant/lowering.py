"""Lowering: from a trained network, traced by torch.fx, to the steps of an integer program.

Every value of the graph is either codes, or the sums of a layer that still waits for what follows it: batch
normalisation, bias, shortcut and ReLU become the layer's one multiplier and offset by channel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from torchadder.errors import UserError
from torchadder.nn import Adder, AdderConv2d, AdderLinear, Binary, BinaryConv2d, BinaryLinear
from torchadder.ops.geometry import Geometry
from torchadder.quant.calibration import METHODS, Method, Statistics, observe
from torchadder.quant.pooling import Pooling, is_max, pooling_of
from torchadder.quant.program import (
    AveragePool,
    Kind,
    Layer,
    Logits,
    MaxPool,
    Program,
    Requantisation,
    Step,
    largest_sum,
)

LAYERS = (AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
LARGEST_SHIFT = 24
SUM_BITS = 21  # leave a multiplier 9 bits
MOST_CODES = 1 << 26  # between the least and the largest sum: leaves a bit and more of 32 for the rest
TINY = 1e-30


@dataclass(frozen=True)
class Codes:
    """Value ``index`` of the program, of ``shape`` (C, H, W): real = scale * (code - zero), both (1,) or (C,)."""

    index: int
    shape: tuple[int, int, int]
    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class Sums:
    """Sums of a layer that waits: real = gain * sum + bias (C,), plus what the codes of ``shortcut`` stand for."""

    layer: Callable[[Sequence[int], Requantisation | Logits], Layer]
    source: Codes
    shape: tuple[int, int, int]
    largest: int  # magnitude of a sum
    gain: Tensor
    bias: Tensor
    node: fx.Node  # whose real values these are
    shortcut: Codes | None = None


class Lowering:
    """Builds the program of ``model`` for images like those of ``batches``; arguments as in quantize.

    ``statistics`` are those of the values, by the name of their node, where they are known. Raises UserError for
    arguments out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        bits: int,
        method: Method,
        statistics: Mapping[str, Statistics] | None = None,
    ):
        if not 2 <= bits <= 8:
            raise UserError(f"bits={bits} is out of range: expected 2 to 8")
        if method not in METHODS:
            raise UserError(f"method={method!r} is unknown: expected {', '.join(METHODS)}")
        if not batches or any(batch.dim() != 4 or batch.shape[1:] != batches[0].shape[1:] for batch in batches):
            raise UserError("calibration holds no batches of images (N, C, H, W) of one size")
        self.model, self.method, self.levels = model, method, 2**bits - 1
        self.graph = _trace(model)
        self.statistics = statistics or observe(fx.GraphModule(model, self.graph), batches)
        self.image_shape = batches[0].shape[1], batches[0].shape[2], batches[0].shape[3]
        self.image_levels = 255
        self.values: dict[fx.Node, Codes | Sums] = {}
        self.steps: list[Step] = []

    def program(self) -> Program:
        """The program. Raises UserError that names the first part of the network without an integer form."""
        images = None
        for node in self.graph.nodes:
            if _asks_size(node):
                continue  # of images that are flattened; whatever else uses it is refused
            if node.op == "placeholder" and images is None:
                images = self.values[node] = self._images(node)
            elif node.op == "output" and images is not None:
                self._output(node)
                break
            else:
                self.values[node] = self._lower(node)
        assert images is not None, "a network has an input"
        scale, zero = (t.expand(self.image_shape[0]).float() for t in (images.scale, images.zero))
        return Program(self.image_shape, scale, zero, self.steps, self.image_levels)

    def _lower(self, node: fx.Node) -> Codes | Sums:
        """What a node of the graph becomes."""
        target = self.target(node)
        x = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if x is None:
            raise _refused(node, target)
        if isinstance(target, LAYERS):
            return self._layer(node, target, self._made(node.args[0]))
        if isinstance(target, NORMS):
            return self._normalised(node, target, x)
        if target in ADDITIONS:
            return self._added(node)
        if _rectifies(target):
            return self._rectified(node, x)
        if _hands_on(node, target):
            return x
        try:
            pooling = pooling_of(node, target, x.shape[1:])
        except ValueError as error:
            raise _refused(node, target, str(error)) from error
        if pooling is None:
            raise _refused(node, target)
        return self._pooled(node, pooling, self._made(node.args[0]))

    def target(self, node: fx.Node) -> Any:
        """The module that a node calls, or what else it calls."""
        return _target(self.model, node)

    def _images(self, node: fx.Node) -> Codes:
        """One scale for all channels where an adder layer compares them with its filters, else one for each."""
        known = self.statistics[node.name]
        if any(isinstance(target, Adder) for target in self._readers(node)):
            self.image_levels = self.levels
            scale, zero = _grid(*known.range("max"), self.levels)
        else:
            low, high = known.low.double().clamp(max=0), known.high.double().clamp(min=0)
            scale = (high - low).clamp(min=TINY) / self.image_levels
            zero = -low / scale
        return Codes(0, self.image_shape, scale, zero)

    def _layer(self, node: fx.Node, layer: Any, x: Codes) -> Sums:
        kind: Kind = "adder" if isinstance(layer, Adder) else "binary" if isinstance(layer, Binary) else "conv"
        weight = layer.weight.detach().double()
        stride, padding = (1, 1), (0, 0)
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
                raise _refused(node, layer, "with groups, dilation or a padding mode")
            stride = (layer.stride[0], layer.stride[1])
            padding = _padding(layer)
        elif weight.shape[1] == math.prod(x.shape):
            weight = weight.view(len(weight), *x.shape)  # a fully connected layer has the kernel of its input
        else:
            raise _refused(node, layer, f"on {math.prod(x.shape)} numbers that are not flattened")
        bias = torch.zeros(len(weight), dtype=torch.double) if layer.bias is None else layer.bias.detach().double()
        if kind == "adder":
            codes, clipped = adder_codes(weight, x, self.levels)
            gain, bias = -x.scale.expand(len(weight)), bias - (weight - clipped).abs().sum((1, 2, 3))
            bias = bias + weight.abs().sum((1, 2, 3)) if layer.recenter else bias
        elif kind == "binary":
            codes, gain = torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean((1, 2, 3))
        else:
            codes, gain = conv_codes(weight, x)
            bias = bias - gain * (codes * x.zero.expand(x.shape[0]).view(-1, 1, 1)).sum((1, 2, 3))
        height, width = Geometry(stride, padding, (1, 1), 1).output_size(x.shape[1:], weight.shape[2:])
        codes = codes.to(torch.uint8 if kind == "adder" else torch.int8)
        zero = (x.zero.ceil() if kind == "binary" else x.zero.round()).expand(x.shape[0]).to(torch.uint8)
        return Sums(
            lambda sources, epilogue: Layer(kind, sources, codes, zero, stride, padding, epilogue),
            x,
            (len(weight), height, width),
            largest_sum(kind, codes),
            gain,
            bias,
            node,
        )

    def _normalised(self, node: fx.Node, norm: Any, x: Codes | Sums) -> Sums:
        if not isinstance(x, Sums) or x.shortcut:
            raise _refused(node, norm, "that does not follow a layer")
        if norm.running_var is None:
            raise _refused(node, norm, "without running statistics")
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        gain = gain * norm.weight.detach().double() if norm.affine else gain
        bias = (x.bias - norm.running_mean.double()) * gain
        bias = bias + norm.bias.detach().double() if norm.affine else bias
        return replace(x, gain=x.gain * gain, bias=bias, node=node)

    def _added(self, node: fx.Node) -> Sums:
        """Sums with the other side as their shortcut."""
        if len(node.args) == 2 and not node.kwargs and all(arg in self.values for arg in node.args):
            for one, other in (node.args, node.args[::-1]):
                x = self.values[one]  # type: ignore[index]
                if isinstance(x, Sums) and not x.shortcut:
                    return replace(x, shortcut=self._made(other), node=node)
        raise _refused(node, node.target, "without a layer on one side")

    def _rectified(self, node: fx.Node, x: Codes | Sums) -> Codes:
        if isinstance(x, Codes):
            raise _refused(node, self.target(node), "that does not follow a layer, its normalisation or a sum")
        return self._coded(replace(x, node=node))  # no code lies below 0, so none stands for a negative number

    def _pooled(self, node: fx.Node, pooling: Pooling, x: Codes) -> Codes:
        geometry = Geometry(pooling.stride, pooling.padding, (1, 1), 1)
        height, width = geometry.output_size(x.shape[1:], pooling.kernel)
        shape = (x.shape[0], height, width)
        if pooling.largest:
            self.steps.append(MaxPool([x.index], pooling.kernel[0], pooling.stride[0], pooling.padding[0]))
            return replace(x, index=len(self.steps), shape=shape)
        count = math.prod(pooling.kernel)
        gain, bias = (x.scale / count).expand(x.shape[0]), (-x.zero * x.scale).expand(x.shape[0])
        scale, zero = self._grid_of(node, gain, bias, 255 * count)
        epilogue = requantisation(gain, bias, 255 * count, scale, zero, self.levels)
        self.steps.append(AveragePool([x.index], pooling.kernel, pooling.stride, epilogue))
        return Codes(len(self.steps), shape, scale, zero)

    def _output(self, node: fx.Node) -> None:
        x = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if not isinstance(x, Sums) or x.shortcut or x.shape[1:] != (1, 1):
            raise UserError(
                "cannot quantise a network that does not end in a layer of logits, or its normalisation: drop what "
                "follows it"
            )
        self.steps.append(x.layer([x.source.index], Logits(x.gain.float(), x.bias.float())))

    def _made(self, node: Any) -> Codes:
        """The codes of a node; sums that nobody has needed as codes so far become some, once for all."""
        x = self.values[node]
        if isinstance(x, Sums):
            x = self.values[node] = self._coded(x)
        return x

    def _coded(self, x: Sums) -> Codes:
        scale, zero = self._grid_of(x.node, x.gain, x.bias, x.largest)
        epilogue = requantisation(x.gain, x.bias, x.largest, scale, zero, self.levels, x.shortcut)
        sources = [x.source.index, *([x.shortcut.index] if x.shortcut else [])]
        self.steps.append(x.layer(sources, epilogue))
        return Codes(len(self.steps), x.shape, scale, zero)

    def _grid_of(self, node: fx.Node, gain: Tensor, bias: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of a node's codes. For a binary layer 0 lies between two codes, so that signs are exact.

        What the sums could stand for must not be too many codes, however small the range of the images was.
        """
        low, high = self.statistics[node.name].range(self.method, self.levels)
        least = float((gain.abs() * largest + bias.abs()).max()) / MOST_CODES * self.levels
        scale, zero = _grid(low, max(high, low + least), self.levels)
        return scale, zero - 0.5 if any(isinstance(target, Binary) for target in self._readers(node)) else zero

    def _readers(self, node: fx.Node) -> list[Any]:
        """What computes with a node, behind what only hands its numbers on."""
        found = []
        for user in node.users:
            target = self.target(user)
            passes = _hands_on(user, target) or is_max(target)
            found += self._readers(user) if passes else [target]
        return found


def requantisation(
    gain: Tensor, bias: Tensor, largest: int, scale: Tensor, zero: Tensor, levels: int, shortcut: Codes | None = None
) -> Requantisation:
    """The whole numbers that take sums up to ``largest``, real = gain * sum + bias, to codes of ``scale`` and ``zero``.

    Each channel has as many bits as 32-bit arithmetic allows; of sums beyond SUM_BITS the lowest bits are dropped, half
    of what that takes away given back. What the multiplier's rounding does is taken out of the offset where codes are
    in the middle of their range.
    """
    pre = max(0, largest.bit_length() - SUM_BITS)
    bias, gain = bias + gain * (2**pre - 1) / 2, gain * 2**pre
    largest = (largest >> pre) + 1
    multiplier, offset = gain / scale, bias / scale + zero
    factor = torch.zeros_like(multiplier)
    if shortcut is not None:
        factor = (shortcut.scale / scale).expand_as(multiplier)
        offset = offset - factor * shortcut.zero
    span = multiplier.abs() * largest + offset.abs() + factor * 255 + 1
    shift = torch.floor(31 - torch.log2(span)).sub_(1).clamp_(0, LARGEST_SHIFT)
    one = 2.0**shift
    whole = (multiplier * one).round()
    middle = ((levels / 2 - offset) / multiplier).nan_to_num(0).clamp(-largest, largest)
    corrected = (offset * one + (multiplier * one - whole) * middle + 0.5 * one).floor()
    return Requantisation(
        multiplier=whole.to(torch.int32),
        offset=corrected.to(torch.int32),
        shift=shift.to(torch.int32),
        factor=None if shortcut is None else (factor * one).round().to(torch.int32),
        highest=levels,
        pre=pre,
    )


def adder_codes(weight: Tensor, x: Codes, levels: int) -> tuple[Tensor, Tensor]:
    """Codes of filters in the scale of x, and the filters clamped to its range.

    |x - w| = |x - clip(w)| + |w - clip(w)|, since no x lies beyond the range.

    Shapes: weight (C_out, C_in, kh, kw), as both results, in its dtype.
    """
    if len(x.scale) > 1:
        raise UserError("cannot quantise a network whose images go to an adder layer and to another one")
    clipped = weight.clamp(float(-x.zero * x.scale), float((levels - x.zero) * x.scale))
    return (clipped / x.scale + x.zero).round().clamp(0, levels), clipped


def conv_codes(weight: Tensor, x: Codes) -> tuple[Tensor, Tensor]:
    """Codes -127..127 of filters for codes of x, and the scale of each filter's products, (C_out,)."""
    scaled = weight * x.scale.expand(x.shape[0]).view(-1, 1, 1)
    gain = scaled.abs().amax((1, 2, 3)).clamp(min=TINY) / 127
    return (scaled / gain.view(-1, 1, 1, 1)).round(), gain


def _grid(low: float, high: float, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero, each (1,), of codes 0..levels that cover low..high; the number 0 is a code."""
    scale = max(high - low, TINY) / levels
    return tuple(torch.tensor([v], dtype=torch.double) for v in (scale, round(-low / scale)))  # type: ignore[return-value]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a model's own code raises when it meets a proxy
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot quantise {type(model).__name__}: torch.fx does not trace it ({reason})") from error
    _relu_first(model, graph)
    return graph


def _target(model: nn.Module, node: fx.Node) -> Any:
    """The module that a node calls, or what else it calls."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def _rectifies(target: Any) -> bool:
    return isinstance(target, nn.ReLU) or target in RELUS


def _relu_first(model: nn.Module, graph: fx.Graph) -> None:
    """Max pooling, then ReLU, becomes ReLU, then max pooling: the same numbers, and ReLU follows a layer."""
    for node in list(graph.nodes):
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if before is None or not _rectifies(_target(model, node)):
            continue
        if is_max(_target(model, before)) and len(before.users) == 1:
            source = before.args[0]
            node.replace_all_uses_with(before, lambda user, node=node: user is not node)
            before.args = (node, *before.args[1:])
            node.args = (source, *node.args[1:])
            before.prepend(node)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    """By side; "same" with an odd kernel, the only one that torch pads evenly."""
    if layer.padding == "valid":
        return 0, 0
    if isinstance(layer.padding, str):
        if any(length % 2 == 0 for length in layer.kernel_size):
            raise UserError(f"cannot quantise padding='same' with an even kernel {layer.kernel_size}")
        return (layer.kernel_size[0] - 1) // 2, (layer.kernel_size[1] - 1) // 2
    return layer.padding[0], layer.padding[1]


def _hands_on(node: fx.Node, target: Any) -> bool:
    """Whether a node only hands its numbers on: it computes nothing, or flattens all but the first axis."""
    if isinstance(target, nn.Flatten):
        return (target.start_dim, target.end_dim) == (1, -1)
    if target in (torch.flatten, "flatten"):
        axes = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
        return axes in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})
    if target in ("view", "reshape", torch.reshape):
        shape = node.args[1:] if len(node.args) != 2 else node.args[1]
        return isinstance(shape, (list, tuple)) and len(shape) == 2 and bool(shape[1] == -1) and _is_count(shape[0])
    return isinstance(target, (nn.Identity, nn.Dropout)) or target in ("contiguous", F.dropout)


def _is_count(value: Any) -> bool:
    """Whether this is the number of images, of whichever value: x.size(0), x.size()[0] or x.shape[0]."""
    return isinstance(value, fx.Node) and _asks_size(value) and value.args[1:] == (0,)


def _asks_size(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _asks_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1:] == ("shape",))


def _refused(node: fx.Node, target: Any, detail: str = "") -> UserError:
    """Names the place in the model and what stands there."""
    place = str(node.target) if node.op == "call_module" else node.name
    kind = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", str(target))
    return UserError(f"cannot quantise {place}, {kind} {detail}".rstrip() + ": it has no integer form here")

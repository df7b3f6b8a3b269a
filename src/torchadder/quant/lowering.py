"""Lower a trained network to the steps of an integer program.

Lowering visits the nodes of the traced graph in order. A layer becomes an Accumulator, whose epilogue is not known yet.
The batch normalisation, bias, shortcut and ReLU that follow are folded into it. When another layer or a pooling reads
it, the accumulator becomes a QuantizedValue: its epilogue is then one multiplier, offset and shift for each channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchadder.errors import UserError
from torchadder.nn import Adder, Binary
from torchadder.ops.geometry import Geometry
from torchadder.quant.calibration import METHODS, Method, Statistics, observe
from torchadder.quant.graph import (
    ADDITIONS,
    LAYERS,
    NORMS,
    Pooling,
    is_max_pool,
    is_passthrough,
    is_relu,
    is_size,
    pooling_of,
    target_of,
    trace,
    unsupported,
)
from torchadder.quant.program import (
    AveragePool,
    Kind,
    Layer,
    Logits,
    MaxPool,
    Program,
    Requantization,
    Step,
    largest_accumulator,
)

LARGEST_SHIFT = 24  # fraction bits of an epilogue: a cap for channels whose numbers are so small that more would fit
ACCUMULATOR_BITS = 21  # largest accumulators after pre_shift: 32-bit arithmetic leaves 9 bits for the multiplier
LARGEST_RANGE = 1 << 26  # quantized values before the clamp: 32-bit arithmetic leaves a few fraction bits below them
TINY = 1e-30  # least scale, against division by 0


@dataclass(frozen=True)
class QuantizedValue:
    """Describe value ``index`` of the program, of ``shape`` (C, H, W): real = scale * (q - zero_point).

    scale and zero_point are float64 (1,) or (C,).
    """

    index: int
    shape: tuple[int, int, int]
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class Accumulator:
    """Describe the accumulators of a layer whose epilogue is not known yet, of ``shape`` (C, H, W).

    real = scale * accumulator + bias, plus the real numbers of ``shortcut``; scale and bias are float64 (C,).
    """

    layer: Callable[[Sequence[int], Requantization | Logits], Layer]
    source: QuantizedValue
    shape: tuple[int, int, int]
    largest: int  # magnitude of an accumulator
    scale: Tensor
    bias: Tensor
    node: fx.Node  # the node whose real values these are
    shortcut: QuantizedValue | None = None


class Lowering:
    """Build the program of ``model`` for images like those of ``batches``; arguments as in quantize.

    ``statistics`` of the values, by the name of their node, are observed on the batches where they are not given.
    Raises UserError for arguments out of range.
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
            raise UserError(f"method={method} is unknown: expected {', '.join(METHODS)}")
        if not batches or any(batch.dim() != 4 or batch.shape[1:] != batches[0].shape[1:] for batch in batches):
            raise UserError("calibration holds no batches of images (N, C, H, W) of one size")
        self.model, self.method, self.qmax = model, method, 2**bits - 1
        self.graph = trace(model)
        self.statistics = statistics or observe(fx.GraphModule(model, self.graph), batches)
        self.image_shape = batches[0].shape[1], batches[0].shape[2], batches[0].shape[3]
        self.image_qmax = 255
        self.values: dict[fx.Node, QuantizedValue | Accumulator] = {}
        self.steps: list[Step] = []

    def program(self) -> Program:
        """Return the program. Raises UserError that names the first part of the network without an integer form."""
        images = None
        for node in self.graph.nodes:
            if is_size(node):
                continue  # flattening uses it; any other use is refused there
            if node.op == "placeholder" and images is None:
                images = self.values[node] = self._images(node)
            elif node.op == "output" and images is not None:
                self._output(node)
                break
            else:
                self.values[node] = self._lower(node)
        assert images is not None, "a network has an input"
        scale, zero_point = (t.expand(self.image_shape[0]).float() for t in (images.scale, images.zero_point))
        return Program(self.image_shape, scale, zero_point, self.steps, self.image_qmax)

    def target(self, node: fx.Node) -> Any:
        """Return the module, function or name of a method that a node calls."""
        return target_of(self.model, node)

    def _lower(self, node: fx.Node) -> QuantizedValue | Accumulator:
        target = self.target(node)
        x = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if x is None:
            raise unsupported(node, target)
        if isinstance(target, LAYERS):
            return self._layer(node, target, self._materialize(node.args[0]))
        if isinstance(target, NORMS):
            return self._normalise(node, target, x)
        if target in ADDITIONS:
            return self._add(node)
        if is_relu(target):
            return self._relu(node, x)
        if is_passthrough(node, target):
            return x
        try:
            pooling = pooling_of(node, target, x.shape[1:])
        except ValueError as error:
            raise unsupported(node, target, str(error)) from error
        if pooling is None:
            raise unsupported(node, target)
        return self._pool(node, pooling, self._materialize(node.args[0]))

    def _images(self, node: fx.Node) -> QuantizedValue:
        """Choose one scale for all channels where an adder layer reads the images, else one for each channel.

        An adder layer compares its filters with its input, so both need the same scale.
        """
        known = self.statistics[node.name]
        if any(isinstance(target, Adder) for target in self._readers(node)):
            self.image_qmax = self.qmax
            scale, zero_point = scale_and_zero_point(*known.range("max"), self.qmax)
        else:
            low, high = known.low.double().clamp(max=0), known.high.double().clamp(min=0)
            scale = (high - low).clamp(min=TINY) / self.image_qmax
            zero_point = -low / scale
        return QuantizedValue(0, self.image_shape, scale, zero_point)

    def _layer(self, node: fx.Node, layer: Any, x: QuantizedValue) -> Accumulator:
        kind: Kind = "adder" if isinstance(layer, Adder) else "binary" if isinstance(layer, Binary) else "conv"
        weight = layer.weight.detach().double()
        stride, padding = (1, 1), (0, 0)
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
                raise unsupported(node, layer, "with groups, dilation or a padding mode")
            stride = (layer.stride[0], layer.stride[1])
            padding = _padding(layer)
        elif weight.shape[1] == math.prod(x.shape):
            weight = weight.view(len(weight), *x.shape)  # a fully connected layer has a kernel as large as its input
        else:
            raise unsupported(node, layer, f"on {math.prod(x.shape)} numbers that are not flattened")
        bias = torch.zeros(len(weight), dtype=torch.double) if layer.bias is None else layer.bias.detach().double()
        if kind == "adder":
            q, clipped = quantize_adder_weight(weight, x, self.qmax)
            scale, bias = -x.scale.expand(len(weight)), bias - (weight - clipped).abs().sum((1, 2, 3))
            bias = bias + weight.abs().sum((1, 2, 3)) if layer.recenter else bias
        elif kind == "binary":
            q, scale = torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean((1, 2, 3))
        else:
            q, scale = quantize_conv_weight(weight, x)
            bias = bias - scale * (q * x.zero_point.expand(x.shape[0]).view(-1, 1, 1)).sum((1, 2, 3))
        height, width = Geometry(stride, padding, (1, 1), 1).output_size(x.shape[1:], weight.shape[2:])
        q = q.to(torch.uint8 if kind == "adder" else torch.int8)
        zero_point = x.zero_point.ceil() if kind == "binary" else x.zero_point.round()
        zero_point = zero_point.expand(x.shape[0]).to(torch.uint8)
        return Accumulator(
            lambda sources, epilogue: Layer(kind, sources, q, zero_point, stride, padding, epilogue),
            x,
            (len(weight), height, width),
            largest_accumulator(kind, q),
            scale,
            bias,
            node,
        )

    def _normalise(self, node: fx.Node, norm: Any, x: QuantizedValue | Accumulator) -> Accumulator:
        if not isinstance(x, Accumulator) or x.shortcut:
            raise unsupported(node, norm, "that does not follow a layer")
        if norm.running_var is None:
            raise unsupported(node, norm, "without running statistics")
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale * norm.weight.detach().double() if norm.affine else scale
        bias = (x.bias - norm.running_mean.double()) * scale
        bias = bias + norm.bias.detach().double() if norm.affine else bias
        return replace(x, scale=x.scale * scale, bias=bias, node=node)

    def _add(self, node: fx.Node) -> Accumulator:
        """Make the second operand the shortcut of the first, or the first that of the second."""
        if len(node.args) == 2 and not node.kwargs and all(arg in self.values for arg in node.args):
            for one, other in (node.args, node.args[::-1]):
                x = self.values[one]  # type: ignore[index]
                if isinstance(x, Accumulator) and not x.shortcut:
                    return replace(x, shortcut=self._materialize(other), node=node)
        raise unsupported(node, node.target, "without a layer on one side")

    def _relu(self, node: fx.Node, x: QuantizedValue | Accumulator) -> QuantizedValue:
        if isinstance(x, QuantizedValue):
            raise unsupported(node, self.target(node), "that does not follow a layer, its normalisation or a sum")
        return self._requantize(replace(x, node=node))  # its range begins at 0, so the clamp to 0 is the ReLU

    def _pool(self, node: fx.Node, pooling: Pooling, x: QuantizedValue) -> QuantizedValue:
        geometry = Geometry(pooling.stride, pooling.padding, (1, 1), 1)
        height, width = geometry.output_size(x.shape[1:], pooling.kernel)
        shape = (x.shape[0], height, width)
        if pooling.maximum:
            self.steps.append(MaxPool([x.index], pooling.kernel[0], pooling.stride[0], pooling.padding[0]))
            return replace(x, index=len(self.steps), shape=shape)
        count = math.prod(pooling.kernel)
        scale, bias = (x.scale / count).expand(x.shape[0]), (-x.zero_point * x.scale).expand(x.shape[0])
        to = self._choose_scale(node, scale, bias, 255 * count)
        epilogue = requantization(scale, bias, 255 * count, *to, self.qmax)
        self.steps.append(AveragePool([x.index], pooling.kernel, pooling.stride, epilogue))
        return QuantizedValue(len(self.steps), shape, *to)

    def _output(self, node: fx.Node) -> None:
        x = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if not isinstance(x, Accumulator) or x.shortcut or x.shape[1:] != (1, 1):
            raise UserError(
                "cannot quantize a network that does not end in a layer of logits, or its normalisation: drop what "
                "follows it"
            )
        self.steps.append(x.layer([x.source.index], Logits(x.scale.float(), x.bias.float())))

    def _materialize(self, node: Any) -> QuantizedValue:
        """Return the quantized value of a node; an accumulator is requantized once, for all its readers."""
        x = self.values[node]
        if isinstance(x, Accumulator):
            x = self.values[node] = self._requantize(x)
        return x

    def _requantize(self, x: Accumulator) -> QuantizedValue:
        scale, zero_point = self._choose_scale(x.node, x.scale, x.bias, x.largest)
        epilogue = requantization(x.scale, x.bias, x.largest, scale, zero_point, self.qmax, x.shortcut)
        sources = [x.source.index, *([x.shortcut.index] if x.shortcut else [])]
        self.steps.append(x.layer(sources, epilogue))
        return QuantizedValue(len(self.steps), x.shape, scale, zero_point)

    def _choose_scale(self, node: fx.Node, scale: Tensor, bias: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for the values of a node, computed from accumulators up to ``largest``.

        However small the observed range is, the scale is so large that no accumulator becomes more than LARGEST_RANGE
        quantized values. The zero point lies between two integers where a binary layer reads the values, so
        that rounding changes no sign.
        """
        low, high = self.statistics[node.name].range(self.method, self.qmax)
        least = float((scale.abs() * largest + bias.abs()).max()) / LARGEST_RANGE * self.qmax
        chosen, zero_point = scale_and_zero_point(low, max(high, low + least), self.qmax)
        halfway = any(isinstance(target, Binary) for target in self._readers(node))
        return chosen, zero_point - 0.5 if halfway else zero_point

    def _readers(self, node: fx.Node) -> list[Any]:
        """Return what computes with the values of a node, also behind flattening and max pooling."""
        found = []
        for user in node.users:
            target = self.target(user)
            passes = is_passthrough(user, target) or is_max_pool(target)
            found += self._readers(user) if passes else [target]
        return found


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
    span = multiplier.abs() * largest + offset.abs() + factor * 255 + 1
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


def quantize_adder_weight(weight: Tensor, x: QuantizedValue, qmax: int) -> tuple[Tensor, Tensor]:
    """Return filters (C_out, C_in, kh, kw) quantized with the scale of their input x, and clamped to its range.

    Clamping loses nothing, since no x lies beyond the range: |x - w| = |x - clip(w)| + |w - clip(w)|. Both results
    have the shape and dtype of ``weight``. Raises UserError where x has a scale for each channel.
    """
    if len(x.scale) > 1:
        raise UserError("cannot quantize a network whose images go to an adder layer and to another one")
    clipped = weight.clamp(float(-x.zero_point * x.scale), float((qmax - x.zero_point) * x.scale))
    return (clipped / x.scale + x.zero_point).round().clamp(0, qmax), clipped


def quantize_conv_weight(weight: Tensor, x: QuantizedValue) -> tuple[Tensor, Tensor]:
    """Return filters (C_out, C_in, kh, kw) quantized to -127..127, and the scale of their accumulators, (C_out,)."""
    scaled = weight * x.scale.expand(x.shape[0]).view(-1, 1, 1)
    scale = scaled.abs().amax((1, 2, 3)).clamp(min=TINY) / 127
    return (scaled / scale.view(-1, 1, 1, 1)).round(), scale


def scale_and_zero_point(low: float, high: float, qmax: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, float64 (1,), of values 0..qmax that cover low..high; 0 is one of them exactly."""
    scale = max(high - low, TINY) / qmax
    return tuple(torch.tensor([v], dtype=torch.double) for v in (scale, round(-low / scale)))  # type: ignore[return-value]


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Return the padding (rows, columns); "same" with an odd kernel, the only one that torch pads evenly."""
    if layer.padding == "valid":
        return 0, 0
    if isinstance(layer.padding, str):
        if any(length % 2 == 0 for length in layer.kernel_size):
            raise UserError(f"cannot quantize padding='same' with an even kernel {layer.kernel_size}")
        return (layer.kernel_size[0] - 1) // 2, (layer.kernel_size[1] - 1) // 2
    return layer.padding[0], layer.padding[1]

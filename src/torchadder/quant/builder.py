"""Build the steps of an integer program: layers and poolings, their scales, and the values that they compute.

A layer becomes an Accumulator, whose epilogue is not known yet. When another step reads it, the accumulator becomes a
QuantizedValue: its epilogue is then one multiplier, offset and shift for each channel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from torchadder.errors import UserError
from torchadder.ops.geometry import Geometry
from torchadder.quant.calibration import METHODS, Method, Statistics
from torchadder.quant.graph import IDENTITIES, Network, operator_of, sizes
from torchadder.quant.steps import (
    AveragePool,
    Concat,
    Kind,
    Layer,
    Sides,
    Step,
    Table,
    fewest,
    largest_accumulator,
    mean_unit,
    pixels_of_windows,
)
from torchadder.quant.values import TINY, Accumulator, QuantizedValue, requantization, scale_and_zero_point

LARGEST_RANGE = 1 << 26  # quantized values before the clamp: 32-bit arithmetic leaves a few fraction bits below them
KINDS: dict[str, Kind] = {
    "aten::conv1d": "conv",
    "aten::conv2d": "conv",
    "aten::linear": "conv",
    "torchadder::adder_conv": "adder",
    "torchadder::binary_conv": "binary",
}
ARITHMETIC = ("aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div")
MOVES = ("aten::index", "aten::index_select", "aten::flip", "aten::roll", "aten::repeat", "aten::expand")
KEEP_SCALE = ("aten::max_pool1d", "aten::max_pool2d", "aten::pad", "aten::slice", "aten::channel_shuffle", *MOVES)
PASSTHROUGH = ("aten::reshape", *IDENTITIES)
# These stand in while obstacles are looked for.
WITHOUT_DATA = Statistics(*(torch.tensor([number], device="cpu") for number in (-1.0, 1.0, 1.0)))

Value = QuantizedValue | Accumulator
Kept = Literal["repeats", "margin", "selection"]


class Obstacle(Exception):  # noqa: N818  it is collected; the error is raised for all of them
    """Say why a node has no integer form: what is special about it, and what to do."""

    def __init__(self, detail: str = "", advice: str = "it has no integer form, replace it"):
        super().__init__(f"{' ' * bool(detail)}{detail}: {advice}")


class Builder:
    """Build the values and steps of a captured network; arguments as in quantize.

    Attributes:
        statistics: of the values, by the name of their node; None where there is no data yet.
        values: of each node. sources: the input of each layer.
        steps: of the program. origins: the node of each, for messages.
        ranged: the names of the nodes whose statistics were needed.

    Raises UserError for arguments out of range.
    """

    def __init__(self, network: Network, bits: int, method: Method, statistics: Mapping[str, Statistics] | None = None):
        try:
            bits = operator.index(bits)
        except TypeError:
            raise UserError(f"bits={bits!r} is no integer: expected 2 to 8") from None
        if not 2 <= bits <= 8:
            raise UserError(f"bits={bits} is out of range: expected 2 to 8")
        if method not in METHODS:
            raise UserError(f"method={method} is unknown: expected {', '.join(METHODS)}")
        self.network, self.qmax = network, 2**bits - 1
        self.method: Method = "max" if statistics is None else method
        self.statistics, self.constants = statistics, network.constants()
        self.image_qmax = 255
        self.values: dict[fx.Node, Value] = {}
        self.sources: dict[fx.Node, QuantizedValue] = {}
        self.obstacles: list[str] = []
        self.ranged: set[str] = set()
        self.steps: list[Step] = []
        self.origins: list[fx.Node] = []

    def images(self, node: fx.Node) -> QuantizedValue:
        """Choose one scale for all channels where an adder layer reads the images, else one for each channel.

        An adder layer compares its filters with its input, so both need the same scale.
        """
        known = self._statistics(node)
        if "adder" in map(KINDS.get, map(operator_of, self.readers(node))):
            self.image_qmax = self.qmax
            scale, zero_point = scale_and_zero_point(*known.range("max"), self.qmax)
        else:
            low, high = known.low.double().clamp(max=0), known.high.double().clamp(min=0)
            scale = (high - low).clamp(min=TINY) / self.image_qmax
            zero_point = -low / scale
        return QuantizedValue(0, self.network.shape, scale, zero_point)

    def accumulator(
        self,
        kind: Kind,
        node: fx.Node,
        x: QuantizedValue,
        q: Tensor,
        scale: Tensor,
        bias: Tensor,
        stride: tuple[int, int] = (1, 1),
        padding: Sides = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Accumulator:
        """Return the accumulators of a layer with the quantized weight q: real = scale * accumulator + bias."""
        padded = x.shape[1] + padding[0] + padding[2], x.shape[2] + padding[1] + padding[3]
        height, width = Geometry(stride, (0, 0), dilation, groups).output_size(padded, q.shape[2:])
        top, left, bottom, right = (a + b for a, b in zip(padding, x.margin, strict=True))
        sides = (top, left) if (top, left) == (bottom, right) else (top, left, bottom, right)
        # Halfway between two integers a zero is the upper one, so that its sign is that of 0.
        zero_point = x.zero_point.ceil() if kind == "binary" else (x.zero_point + 0.5).floor()
        zero_point = zero_point.expand(x.shape[0]) if len(zero_point) == 1 else zero_point[: x.shape[0]]
        zero_point = zero_point.clamp(0, 255).to(torch.uint8)
        if x.selection is not None:  # the weights of the other channels are 0
            q, zero_point = (q.movedim(1, -1) @ x.selection).movedim(-1, 1), zero_point @ x.selection.to(torch.uint8)
        return Accumulator(
            lambda sources, epilogue: Layer(kind, sources, q, zero_point, stride, sides, epilogue, dilation, groups),
            (x.index,),
            (len(q), height, width),
            largest_accumulator(kind, q),
            scale,
            bias,
            node,
        )

    def identity_layer(self, node: fx.Node, x: QuantizedValue, before: int = 0, after: int = 0) -> Accumulator:
        """Return the accumulators of a layer that computes ``x``, with channels of zeros before and after."""
        if not before and not after and x.selection is None:
            return self.depthwise_mean(node, x)
        scale, bias = self.scale_and_bias(x)
        eye = pad(torch.eye(x.shape[0], dtype=torch.int8), (0, 0, before, after)).view(-1, x.shape[0], 1, 1)
        scale, bias = (pad(t, (before, after)) for t in (scale, bias))
        return self.accumulator("conv", node, x, eye, scale, bias)

    def depthwise_mean(
        self,
        node: fx.Node,
        x: QuantizedValue,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: Sides = (0, 0, 0, 0),
    ) -> Accumulator:
        """Return the accumulators of a depthwise layer of ones, the mean of each window with the zeros around x."""
        scale, bias = self.scale_and_bias(x)
        scale, ones = scale / math.prod(kernel), torch.ones(len(scale), 1, *kernel, dtype=torch.int8)
        return self.accumulator("conv", node, x, ones, scale, bias, stride, padding, groups=len(scale))

    def requantize_as(self, x: Accumulator, like: QuantizedValue) -> QuantizedValue:
        """Return the quantized value of ``x``, which holds numbers of ``like`` and keeps their scale."""
        # The values may be images, which have 8 bits whatever those of the program.
        epilogue = requantization(x.scale, x.bias, x.largest, like.scale, like.zero_point, 255)
        self.append(x.node, x.step(x.sources, epilogue))
        return replace(like, index=len(self.steps), shape=x.shape, margin=(0, 0, 0, 0), selection=None)

    def by_pixel(self, x: QuantizedValue) -> QuantizedValue:
        """Return ``x`` where all pixels of a channel have one scale."""
        if len(x.scale) not in (1, x.shape[0]):
            raise Obstacle("of flattened values with a scale for each", "let a layer compute them")
        return x

    def scale_and_bias(self, x: QuantizedValue) -> tuple[Tensor, Tensor]:
        """Return the numbers of each channel, (C,), with which real = scale * q + bias."""
        scale = self.by_pixel(x).scale.expand(x.shape[0])
        return scale, -x.zero_point * scale

    def pooled(
        self,
        node: fx.Node,
        x: QuantizedValue,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: Sides = (0, 0, 0, 0),
    ) -> Accumulator:
        """Return the accumulators of an average pooling; a kernel of one pixel takes each value for itself.

        The mean is over the pixels of a window that are no padding.
        """
        scale, bias = self.scale_and_bias(x)
        counts = pixels_of_windows(x.shape[1:], kernel, stride, padding)
        if not bool((counts > 0).all()):
            raise Obstacle("with windows outside of the image", "take less padding")
        unit = mean_unit(counts)
        return Accumulator(
            lambda sources, epilogue: AveragePool(sources, kernel, stride, epilogue, fewest(padding)),
            (x.index,),
            (len(scale), *counts.shape),
            255 * unit,
            scale / unit,
            bias,
            node,
            is_layer=False,
        )

    def concatenated(self, node: fx.Node, values: Sequence[QuantizedValue]) -> Accumulator:
        """Return the values themselves as accumulators, channels after channels."""
        scale, bias = (torch.cat(numbers) for numbers in zip(*map(self.scale_and_bias, values), strict=True))
        shape = (len(scale), *values[0].shape[1:])
        return Accumulator(Concat, tuple(x.index for x in values), shape, 255, scale, bias, node, is_layer=False)

    def append(self, node: fx.Node, step: Step) -> None:
        self.steps.append(step)
        self.origins.append(node)

    def value(self, node: Any, *kept: Kept) -> Value:
        """Return the value of a node.

        Only with "repeats" may it be one pixel for what is an image of equal ones. Only with "margin" may it lack the
        zeros at its margin, and only with "selection" have more channels; else a layer computes what it stands for.
        """
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if value is None:
            raise Obstacle("of values that do not depend on the image")
        if "repeats" not in kept and math.prod(value.shape) != math.prod(sizes(node)):
            raise Obstacle("of one pixel that was repeated", "flatten it for a fully connected layer")
        if isinstance(value, QuantizedValue) and (
            (any(value.margin) and "margin" not in kept) or (value.selection is not None and "selection" not in kept)
        ):
            value = self.values[node] = self.requantize_as(self.identity_layer(node, value), value)
        return value

    def constant(self, node: Any) -> Tensor:
        """Return the value of parameters, buffers and what is computed from them alone; 0 for None."""
        value = torch.zeros(1) if node is None else self.constants.get(node)
        if not isinstance(value, Tensor):
            raise Obstacle("whose parameters depend on the image")
        if not bool(value.isfinite().all()):
            raise Obstacle("with NaN or infinite parameters", "train it anew")
        return value.detach().cpu()

    def by_channel(self, x: fx.Node, constant: Any) -> Tensor:
        """Return a constant that is combined with the values of x, float64 (1,), (C,) or, flattened, (F,)."""
        if isinstance(constant, fx.Node):
            constant = self.constant(constant)
        c = torch.as_tensor(constant, dtype=torch.double)
        if not bool(c.isfinite().all()):
            raise Obstacle("with NaN or infinite parameters", "train it anew")
        shape = (1,) * (len(sizes(x)) + 1 - c.dim()) + tuple(c.shape)
        if math.prod(shape) != shape[1]:
            raise Obstacle(f"with a constant of shape {tuple(c.shape)}", "take one number, or one for each channel")
        return c.reshape(-1)

    def materialize(self, node: Any, *kept: Kept) -> QuantizedValue:
        """Return the quantized value of a node; an accumulator is requantized once, for all its readers. See value."""
        x = self.value(node, *kept)
        if isinstance(x, Accumulator):
            x = self.values[node] = self.requantize(x)
        return x

    def requantize(self, x: Accumulator, high: float = math.inf) -> QuantizedValue:
        """Return the quantized value of an accumulator, whose real numbers are at most ``high``."""
        x, scale, zero_point = self._choose_scale(x)
        qmax = min(self.qmax, max(1, round(min(high / float(scale) + float(zero_point), self.qmax))))
        epilogue = requantization(x.scale, x.bias, x.largest, scale, zero_point, qmax, x.shortcut)
        self.append(x.node, x.step([*x.sources, *([x.shortcut.index] if x.shortcut else [])], epilogue))
        return QuantizedValue(len(self.steps), x.shape, scale, zero_point)

    def _choose_scale(self, x: Accumulator) -> tuple[Accumulator, Tensor, Tensor]:
        """Return scale and zero point for the values of a layer, whose dead channels become constants.

        However small the observed range is, the scale is so large that no accumulator becomes more than LARGEST_RANGE
        quantized values. A channel that was constant on all images would widen it for nothing. The zero point lies
        between two integers where a binary layer reads the values, so that rounding changes no sign.
        """
        known = self._statistics(x.node)
        low, high = known.range(self.method, self.qmax)
        widest = (x.scale.abs() * x.largest + x.bias.abs()) / LARGEST_RANGE * self.qmax
        dead = (widest > high - low) & (known.low == known.high) if len(known.low) == len(widest) else widest < 0
        if bool(dead.any()):
            x = replace(x, scale=x.scale.where(~dead, 0), bias=x.bias.where(~dead, known.low.double()))
            if x.shortcut:
                x = replace(x, shortcut=replace(x.shortcut, scale=x.shortcut.scale.where(~dead, 0)))
            widest = widest.where(~dead, 0)
        return x, *self._scale_for_readers(x.node, low, max(high, low + float(widest.max())))

    def _scale_for_readers(self, node: fx.Node, low: float, high: float) -> tuple[Tensor, Tensor]:
        scale, zero_point = scale_and_zero_point(low, high, self.qmax)
        halfway = "binary" in map(KINDS.get, map(operator_of, self.readers(node)))
        return scale, zero_point - 0.5 if halfway else zero_point

    def table(self, node: fx.Node, x: QuantizedValue, function: Callable[[Tensor], Tensor]) -> QuantizedValue:
        """Return the value of a function of each number, which a table holds for all quantized values.

        ``function`` takes the real numbers of quantized values 0..255, float32 (1, C, 256, 1).
        """
        x = self.by_pixel(x)
        channels = (x.shape[0], -1)
        scale, zero_point = self._scale_for_readers(node, *self._statistics(node).range(self.method, self.qmax))
        real = ((torch.arange(256) - x.zero_point.view(-1, 1)) * x.scale.view(-1, 1)).expand(channels)
        y = function(real.float()[None, :, :, None])[0, :, :, 0].double()
        if not bool(y.isfinite().all()):
            raise Obstacle("that gives NaN or infinite numbers")
        q = (y / scale + zero_point).round().clamp(0, self.qmax).to(torch.uint8)
        self.append(node, Table([x.index], q[:1].clone() if bool((q == q[0]).all()) else q))
        return QuantizedValue(len(self.steps), x.shape, scale, zero_point)

    def _statistics(self, node: fx.Node) -> Statistics:
        self.ranged.add(node.name)
        return WITHOUT_DATA if self.statistics is None else self.statistics[node.name]

    def readers(self, node: fx.Node, through: Sequence[str] = KEEP_SCALE) -> list[fx.Node]:
        """Return the nodes that compute with the values of a node, also behind flattening and what is in ``through``.

        These are passed where all of their other inputs are constants.
        """
        found = []
        for user in node.users:
            is_unary = all(other is node or other in self.constants for other in user.all_input_nodes)
            passes = is_unary and operator_of(user) in (*PASSTHROUGH, *through)
            found += self.readers(user, through) if passes else [user]
        return found

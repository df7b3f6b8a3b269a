"""Lower a captured network to the steps of an integer program.

Lowering visits the operators of the graph in order; HANDLERS says which have an integer form. The batch normalisation,
constants, shortcut and ReLU that follow a layer are folded into its epilogue. What follows no layer gets one: a pooling
of one pixel computes ReLU and normalisation, a convolution with the identity matrix adds two quantized values, or gives
logits.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from torchadder.errors import UserError
from torchadder.quant import file
from torchadder.quant.builder import ARITHMETIC, KINDS, MOVES, PASSTHROUGH, Builder, Kept, Obstacle, Value
from torchadder.quant.graph import image_shape, is_random, operator_of, sizes
from torchadder.quant.program import Program
from torchadder.quant.steps import Concat, Logits, MaxPool, Sides, fewest, four_sides
from torchadder.quant.values import Accumulator, QuantizedValue, quantize_weight


class Lowering(Builder):
    """Build the program of a captured network; arguments and attributes as in Builder.

    ``obstacles``: a line for each part without integer form, known after ``run``.
    """

    def program(self) -> Program:
        """Return the program. Raises UserError that names all parts of the network without an integer form."""
        program = self.run()
        if program is None:
            lines = "".join(f"\n  {obstacle}" for obstacle in self.obstacles)
            several = f"{self.network.name}, look at {len(self.obstacles)} parts:{lines}"
            raise UserError(f"cannot quantize {self.obstacles[0] if len(self.obstacles) == 1 else several}")
        return program

    def run(self) -> Program | None:
        """Lower all nodes, and return the program that the native engine accepts; None where there are obstacles."""
        with torch.device("cpu"):  # whatever the default device
            return self._run()

    def _run(self) -> Program | None:
        images = self.values[self.network.images] = self.images(self.network.images)
        reasons: dict[str, dict[str, None]] = {}  # places in order
        for node in self.network.nodes:
            if "val" in node.meta and not isinstance(node.meta["val"], (Tensor, tuple, list)):
                continue  # a size: the operators that use it are refused
            try:
                self.values[node] = self._lower(node)
            except Obstacle as obstacle:
                place, kind = self.network.place(node).rsplit(", ", 1)
                if operator_of(node) != "getitem":  # it follows what was refused already
                    reasons.setdefault(f", {kind}{obstacle}", {})[place] = None
                self.values[node] = self._stand_in(node)
        try:
            self._output(self.network.output)
        except Obstacle as obstacle:
            reasons[f", output{obstacle}"] = {self.network.name: None}
        for reason, (first, *others) in reasons.items():
            more = f" ({len(others)} more: {', '.join(others[:3])}{', ...' * (len(others) > 3)})" if others else ""
            self.obstacles.append(f"{first}{reason}{more}")
        if self.obstacles:
            return None
        shape = self.network.shape
        scale, zero_point = (t.expand(shape[0]).float() for t in (images.scale, images.zero_point))
        program = Program(shape, scale, zero_point, self.steps, self.image_qmax)
        if reason := file.refusal(program.to_bytes()):
            step = re.match(r"step (\d+): ", reason)
            place = self.network.place(self.origins[int(step[1])]) if step else self.network.name
            self.obstacles.append(f"{place}: {reason[step.end() if step else 0 :]}")
            return None
        return program

    def _lower(self, node: fx.Node) -> Value:
        handler = HANDLERS.get(operator_of(node))
        if is_random(node):
            raise Obstacle("that may be random", "pass training=self.training to dropout, or replace it")
        if handler is None:
            raise Obstacle
        return handler(self, node, *node.args, **node.kwargs)

    def _stand_in(self, node: fx.Node) -> Accumulator:
        """Return a value for a refused node, so that the parts after it are looked at, too."""
        shape = sizes(node)
        if not shape or not all(isinstance(side, int) for side in shape):  # it depends on the number of images
            shape = (1,)
        shape = image_shape(shape if len(shape) <= 3 else (math.prod(shape),))
        ones = torch.ones(shape[0], dtype=torch.double)
        return Accumulator(Concat, (0,), shape, 1, ones, ones, node)

    def _convolution(
        self,
        node: fx.Node,
        x_node: fx.Node,
        weight: fx.Node,
        bias: fx.Node | None = None,
        stride: Sequence[int] = (),
        padding: Sequence[int] | str = (),
        dilation: Sequence[int] = (),
        groups: int = 1,
        recenter: bool = False,
        *rules: str,
    ) -> Accumulator:
        """Lower a convolution of any kind; one without axes is a fully connected layer, one of rows has height 1."""
        kind, filters = KINDS[operator_of(node)], self.constant(weight).double()
        dims, kernel = filters.dim() - 2, filters.shape[2:]
        # An exported graph leaves out arguments that have their default.
        stride, padding, dilation = stride or (1,) * dims, padding or (0,) * dims, dilation or (1,) * dims
        if dims > 2:
            raise Obstacle(f"in {dims}-d", "take images (N, C, H, W)")
        if isinstance(padding, str):
            total = [step * (length - 1) * (padding == "same") for length, step in zip(kernel, dilation, strict=True)]
            padding = [*(t // 2 for t in total), *(t - t // 2 for t in total)]
        if dims == 1:
            filters, padding = filters.unsqueeze(2), (0, padding[0], 0, padding[-1])
        kept: list[Kept] = [] if kind == "binary" else ["margin"]  # it takes the sign of a zero, but not of its padding
        if kind == "conv" and not dims:
            kept.append("repeats")
        if kind == "conv" and groups == 1 and filters.shape[2:] == (1, 1):  # zeros in larger kernels cost too much
            kept.append("selection")
        x = self.sources[node] = self.materialize(x_node, *kept)
        if not dims:  # a fully connected layer has a kernel as large as its input
            if len(sizes(x_node)) != 1:
                raise Obstacle(f"of inputs {('N', *sizes(x_node))}", "flatten all axes but the first")
            if x.shape[1:] == (1, 1) and filters.shape[1] != x.shape[0]:  # its pixel is repeated
                filters = filters.view(len(filters), x.shape[0], -1).sum(2)
            filters, padding = filters.view(len(filters), *x.shape), (0,)
        if kind == "adder" and len(x.scale) > 1:
            raise Obstacle("of images that another layer reads", "let adder layers or other ones read them")
        q, scale, shift = quantize_weight(kind, filters, x, self.qmax, recenter)
        (*_, rows, columns), (*_, row, column) = (1, 1, *stride), (1, 1, *dilation)
        axes = (rows, columns), four_sides(padding), (row, column), groups
        return self.accumulator(kind, node, x, q, scale, self.constant(bias) + shift, *axes)

    def _normalise(self, node: fx.Node, x: fx.Node, *args: Any) -> Value:
        weight, bias, mean, var, _, _, eps, _ = args
        scale = (self.constant(var).double() + eps).rsqrt()
        scale = scale if weight is None else scale * self.constant(weight).double()
        if not bool(scale.isfinite().all()):
            raise Obstacle("with negative variances", "train it anew")
        return self._affine(node, x, self.constant(mean), scale, self.constant(bias))

    def _normalise_by_batch(self, node: fx.Node, *args: Any) -> Value:
        raise Obstacle("without running statistics", "set track_running_stats=True and train it")

    def _affine(self, node: fx.Node, x_node: fx.Node, *constants: Tensor | float) -> Value:
        """Lower y = (x - mean) * scale + bias; the constants are numbers, or (C,), (1,), or (F,) of flattened values.

        It is folded into the layer before it; else into the layers after it, where these do not pad, since 0 is
        another quantized value then; else it becomes a step.
        """
        x = self.value(x_node)
        numbers = (torch.as_tensor(constant, dtype=torch.double).view(-1) for constant in constants)
        mean, scale, bias = torch.broadcast_tensors(*numbers)
        length = len(scale)
        if isinstance(x, QuantizedValue) or length not in (1, x.shape[0]):
            x = self.materialize(x_node)
            self.ranged.add(node.name)
            layers = self.readers(node, through=(*ARITHMETIC, "aten::batch_norm"))
            if bool((scale != 0).all()) and all(KINDS.get(operator_of(n)) == "conv" for n in layers):
                longest = max(length, len(x.scale))
                mean, scale, bias = (_spread(t, longest) for t in (mean, scale, bias))
                x = replace(x, scale=_spread(x.scale, longest), zero_point=_spread(x.zero_point, longest))
                zero_point = x.zero_point + (mean - bias / scale) / x.scale
                is_zero_in_range = bool(((zero_point >= 0) & (zero_point <= 255)).all())
                if is_zero_in_range or not any(map(_pads, layers)):
                    return replace(x, scale=x.scale * scale, zero_point=zero_point)
            if length not in (1, x.shape[0]):
                raise Obstacle("of flattened values", "put it before flattening, or after the next layer")
            x = self.pooled(node, x)
        shortcut = x.shortcut
        if shortcut is not None:
            shortcut = replace(shortcut, scale=shortcut.scale * scale.expand(x.shape[0]))
        return replace(x, scale=x.scale * scale, bias=(x.bias - mean) * scale + bias, shortcut=shortcut, node=node)

    def _arithmetic(self, node: fx.Node, a: Any, b: Any, alpha: float = 1, **options: Any) -> Value:
        """Lower a sum or difference, also of two values of the network; a product or quotient with a constant."""
        name = operator_of(node).rpartition("::")[2]
        for option, setting in options.items():
            raise Obstacle(f"with {option}={setting}", f"leave out {option}")
        if name == "rsub":
            name, a, b = "sub", b, a
        factors = 1, alpha if name == "add" else -alpha
        if name in ("add", "sub") and a in self.values and b in self.values:
            return self._add(node, (a, b), factors)
        if name in ("add", "sub"):  # factor * x + constant
            (x, constant), (factor, other) = ((b, a), factors[::-1]) if b in self.values else ((a, b), factors)
            return self._affine(node, x, 0, factor, self.by_channel(x, constant) * other)
        if b in self.values:
            if a in self.values or name == "div":
                raise Obstacle("of two values that depend on the image")
            a, b = b, a
        c = self.by_channel(a, b)
        return self._affine(node, a, 0, c if name == "mul" else 1 / c, 0)

    def _add(self, node: fx.Node, nodes: tuple[fx.Node, fx.Node], factors: tuple[float, float]) -> Accumulator:
        """Make the second operand the shortcut of the first, or the first that of the second."""
        shapes = [self.value(operand).shape for operand in nodes]
        if shapes[0] != shapes[1]:
            raise Obstacle(f"of shapes {shapes[0]} and {shapes[1]}", "give both one shape")
        first = next((i for i, operand in enumerate(nodes) if self._takes_shortcut(operand)), None)
        one, other = nodes[:: -1 if first == 1 else 1]
        factor, other_factor = factors[:: -1 if first == 1 else 1]
        x: Any = self.identity_layer(node, self.materialize(one)) if first is None else self.values[one]
        shortcut = self.by_pixel(self.materialize(other))
        shortcut = replace(shortcut, scale=shortcut.scale * other_factor)
        return replace(x, scale=x.scale * factor, bias=x.bias * factor, shortcut=shortcut, node=node)

    def _takes_shortcut(self, node: fx.Node) -> bool:
        x = self.values[node]
        return isinstance(x, Accumulator) and x.is_layer and not x.shortcut

    def _clamp(self, node: fx.Node, x_node: fx.Node, low: Any = None, high: Any = None) -> QuantizedValue:
        """Lower a clamp to the quantized values of an epilogue, whose range begins at ``low`` or 0; else to a table."""
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if not all(isinstance(limit, (int, float)) for limit in (low, high)):
            raise Obstacle("with limits that are no numbers", "take numbers")
        if not low <= min(0, high):
            return self._function(node, x_node, *node.args[1:])
        x = self.value(x_node)
        if isinstance(x, QuantizedValue):
            x = self.pooled(node, x)
        return self.requantize(replace(x, node=node), high)

    def _function(self, node: fx.Node, x_node: fx.Node, *args: Any, **kwargs: Any) -> QuantizedValue:
        """Lower a function of each number by a table of its values."""
        operator: Any = node.target
        args = tuple(self.constant(arg) if isinstance(arg, fx.Node) else arg for arg in args)
        return self.table(node, self.materialize(x_node), lambda x: operator(x, *args, **kwargs))

    def _max_pool(
        self,
        node: fx.Node,
        x_node: fx.Node,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> QuantizedValue:
        if set(dilation) != {1}:
            raise Obstacle(f"with dilation={tuple(dilation)}", "take dilation=1")
        x, rows = self.materialize(x_node), len(sizes(x_node)) == 2
        size, step = _pair(kernel, rows, 1), _pair(stride or kernel, rows, 1)
        sides, shape = self._windows(node, x, size, step, _pair(padding, rows, 0))
        self.append(node, MaxPool([x.index], *map(fewest, (size, step, sides))))
        return replace(x, index=len(self.steps), shape=shape)

    def _largest(self, node: fx.Node, x: fx.Node, axes: Sequence[int] = (), keepdim: bool = False) -> Value:
        _check_axes(x, axes, "maximum")
        return self._max_pool(node, x, sizes(x)[1:])

    def _average_pool(
        self,
        node: fx.Node,
        x_node: fx.Node,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Value:
        rows = len(sizes(x_node)) == 2
        size, step, before = _pair(kernel, rows, 1), _pair(stride or kernel, rows, 1), _pair(padding, rows, 0)
        if divisor not in (None, math.prod(size)):
            raise Obstacle(f"with divisor_override={divisor}", "leave it out")
        if size == step == (1, 1) and not any(before):
            return self.value(x_node)
        x = self.materialize(x_node)
        sides, _ = self._windows(node, x, size, step, before)
        if not any(before) or not count_include_pad:
            return self.pooled(node, x, size, step, sides)
        if sides[2:] != before:
            raise Obstacle("with ceil_mode and zeros that count", "take count_include_pad=False")
        return self.depthwise_mean(node, x, size, step, sides)

    def _adaptive_pool(self, node: fx.Node, x: fx.Node, output: Sequence[int]) -> Value:
        size, wanted = image_shape(sizes(x))[1:], _pair(output, len(sizes(x)) == 2, 1)
        if size == (1, 1):  # each pixel of the output is a copy
            return self.value(x)
        if any(a % b for a, b in zip(size, wanted, strict=True)):
            raise Obstacle(f"from {size[0]} x {size[1]} to {wanted[0]} x {wanted[1]}", "take windows of one size")
        return self._average_pool(node, x, [a // b for a, b in zip(size, wanted, strict=True)])

    def _mean(self, node: fx.Node, x: fx.Node, axes: Sequence[int] = (), keepdim: bool = False, **kwargs: Any) -> Value:
        _check_axes(x, axes, "mean")
        known = self.value(x)
        if known.shape != image_shape(sizes(x)) and known.shape[1:] != (1, 1):
            raise Obstacle("of flattened values", "take the mean before flattening")
        size = known.shape[1], known.shape[2]
        return known if size == (1, 1) else self.pooled(node, self.materialize(x), size)

    def _concatenate(self, node: fx.Node, tensors: Sequence[fx.Node], axis: int = 0) -> Accumulator:
        """Lower a concatenation of channels, also of flattened images of one size."""
        if axis % (len(sizes(node)) + 1) != 1:
            raise Obstacle(f"over axis {axis}", "concatenate channels")
        values = [self.materialize(tensor) for tensor in tensors]
        if len({x.shape[1:] for x in values}) > 1:
            raise Obstacle("of flattened images of several sizes", "concatenate them before flattening")
        return self.concatenated(node, values)

    def _slice(
        self, node: fx.Node, x_node: fx.Node, axis: int = 0, start: int | None = None, end: Any = None, step: int = 1
    ) -> Value:
        """Lower a slice of channels, or of every second pixel, by a pooling of one pixel that keeps the scale."""
        whole = (sys.maxsize, *sizes(x_node))[axis]
        is_whole = not start and (end is None or (isinstance(end, int) and end >= whole))
        if is_whole and step == 1:
            return self._passthrough(node, x_node)
        if axis == 1:
            return self._move(node, x_node, axis, start, end, step)
        if not is_whole or axis not in (2, 3):
            end = "the end" if end == sys.maxsize else end
            raise Obstacle(f"of axis {axis} from {start or 0} to {end}", "take whole axes, or every second pixel")
        x = self.materialize(x_node)
        is_height = axis == 2 and len(sizes(x_node)) == 3
        pooled = self.pooled(node, x, (1, 1), (step, 1) if is_height else (1, step))
        return self.requantize_as(pooled, x)

    def _move(self, node: fx.Node, x_node: fx.Node, *args: Any, **kwargs: Any) -> QuantizedValue:
        """Lower an operator that selects channels, or exchanges them: applied to numbers, it says which."""
        x, shape = self.by_pixel(self.materialize(x_node, "margin", "selection")), sizes(x_node)
        if x.shape != image_shape(shape):
            raise Obstacle("of flattened values", "select channels before flattening")
        operator: Any = node.target
        args, kwargs = map_arg((args, kwargs), self.constant)
        numbers = torch.arange(2 * math.prod(shape)).view(2, *shape)  # of two images, whose order stays
        moved = operator(numbers, *args, **kwargs)
        pixels = math.prod(shape[1:])
        channels = moved[0].flatten()[::pixels] // pixels % shape[0]
        if not len(channels) or not torch.equal(moved, numbers[:, channels]):
            raise Obstacle
        selection = torch.eye(shape[0], dtype=torch.int8) if x.selection is None else x.selection
        scale, zero_point = (t if len(t) == 1 else t[channels] for t in (x.scale, x.zero_point))
        selected = (len(channels), *x.shape[1:])
        x = replace(x, shape=selected, scale=scale, zero_point=zero_point, selection=selection[channels])
        is_repeated = len(channels.unique()) < len(channels)  # the weights of a repeated channel would be added up
        return self.requantize_as(self.identity_layer(node, x), x) if is_repeated else x

    def _pad(
        self, node: fx.Node, x: fx.Node, pad: Sequence[int], mode: str = "constant", value: float | None = None
    ) -> Value:
        """Lower zeros around the image to padding of the next layers, and channels of zeros to a step."""
        if not any(pad):
            return self.value(x)
        if mode != "constant" or value or len(sizes(x)) != 3 or min(pad) < 0:
            raise Obstacle(f"of {mode} {tuple(pad)}", "pad zeros")
        left, right, top, bottom, before, after = (*pad, *[0] * (6 - len(pad)))
        if before or after:
            if any(pad[:4]):
                raise Obstacle(f"of {mode} {tuple(pad)}", "pad channels by themselves")
            return self.identity_layer(node, self.materialize(x), before, after)
        known = self.materialize(x, "margin")
        shape = (known.shape[0], known.shape[1] + top + bottom, known.shape[2] + left + right)
        margin = zip(known.margin, (top, left, bottom, right), strict=True)
        return replace(known, shape=shape, margin=four_sides([a + b for a, b in margin]))

    def _reshape(self, node: fx.Node, x: fx.Node, shape: Sequence[int]) -> Value:
        """Lower what flattens an image, or gives one back its axes."""
        before, after = sizes(x), sizes(node)
        is_flat = after in (before, (math.prod(before),))
        if not is_flat and (len(after) > 3 or image_shape(after) != self.value(x).shape):
            raise Obstacle(f"from {('N', *before)} to {('N', *after)}", "flatten all axes but the first")
        return self.value(x, "repeats")

    def _passthrough(self, node: fx.Node, x: fx.Node, *args: Any, **kwargs: Any) -> Value:
        return self.value(x, "repeats", "margin", "selection")

    def _output(self, node: fx.Node) -> None:
        x = self.value(node)
        if x.shape[1:] != (1, 1) or not 1 <= len(sizes(node)) <= 3:
            shape = ("N", *sizes(node))
            raise Obstacle(f"of shape {shape}", "end in a layer of logits (N, classes), or in a global pooling")
        if isinstance(x, QuantizedValue) or not x.is_layer or x.shortcut:
            x = self.identity_layer(node, self.materialize(node))
        self.append(node, x.step(x.sources, Logits(x.scale.float(), x.bias.float())))

    def _windows(
        self, node: fx.Node, x: QuantizedValue, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
    ) -> tuple[Sides, tuple[int, int, int]]:
        """Return the four sides' padding with which a pooling has the windows of the network, and the shape of both.

        ceil_mode may add windows at the end, which then reach beyond the padding of the network. Else the pooling pads
        on both sides alike where it does so in the network.
        """
        shape = image_shape(sizes(node))
        axes = zip(x.shape[1:], shape[1:], kernel, stride, before, strict=True)
        needed = [(count - 1) * s + k - n - p for n, count, k, s, p in axes]
        after = [max(p, length) for p, length in zip(before, needed, strict=True)]
        return four_sides((*before, *after)), shape


def _check_axes(x: fx.Node, axes: Sequence[int], what: str) -> None:
    dims = len(sizes(x))
    if dims < 2 or sorted(axis % (dims + 1) for axis in axes) != [2, 3][: dims - 1]:
        raise Obstacle(f"over axes {[*axes]}", f"only a {what} over height and width has an integer form")


def _pair(values: Sequence[int], rows: bool, missing: int) -> tuple[int, int]:
    """Return the numbers of the two axes, where one may stand for both; that of height is missing for ``rows``."""
    return (missing if rows else values[0]), values[-1]


def _spread(numbers: Tensor, length: int) -> Tensor:
    """Return one number for each value of a flattened image, where ``numbers`` has one for each channel."""
    return numbers if len(numbers) in (1, length) else numbers.repeat_interleave(length // len(numbers))


def _pads(layer: fx.Node) -> bool:
    """Return whether a convolution pads its input."""
    padding: Any = layer.args[4] if len(layer.args) > 4 else ()
    return padding == "same" or any(padding)


FUNCTIONS = (
    *("sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "leaky_relu", "prelu"),
    *("hardswish", "hardsigmoid", "log_sigmoid", "softshrink", "hardshrink", "threshold", "abs", "exp"),
)
HANDLERS: dict[str, Callable[..., Value]] = {
    **dict.fromkeys(KINDS, Lowering._convolution),
    "aten::batch_norm": Lowering._normalise,
    "aten::_native_batch_norm_legit": Lowering._normalise_by_batch,
    "aten::relu": lambda self, node, x: self._clamp(node, x, 0),
    "aten::relu6": lambda self, node, x: self._clamp(node, x, 0, 6),
    "aten::hardtanh": lambda self, node, x, low=-1, high=1: self._clamp(node, x, low, high),
    **dict.fromkeys(("aten::clamp", "aten::clip", "aten::clamp_min"), Lowering._clamp),
    "aten::clamp_max": lambda self, node, x, high: self._clamp(node, x, None, high),
    **dict.fromkeys((f"aten::{name}" for name in FUNCTIONS), Lowering._function),
    **dict.fromkeys(ARITHMETIC, Lowering._arithmetic),
    "aten::neg": lambda self, node, x: self._affine(node, x, 0, -1, 0),
    **dict.fromkeys(("aten::max_pool1d", "aten::max_pool2d"), Lowering._max_pool),
    **dict.fromkeys(("aten::avg_pool1d", "aten::avg_pool2d"), Lowering._average_pool),
    **dict.fromkeys(("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d"), Lowering._adaptive_pool),
    "aten::mean": Lowering._mean,
    "aten::amax": Lowering._largest,
    "aten::cat": Lowering._concatenate,
    "aten::slice": Lowering._slice,
    **dict.fromkeys((*MOVES, "aten::channel_shuffle"), Lowering._move),
    "aten::pad": Lowering._pad,
    **dict.fromkeys(PASSTHROUGH, Lowering._passthrough),
    "aten::reshape": Lowering._reshape,
}

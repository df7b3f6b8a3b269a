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

from torchadder.errors import UserError
from torchadder.ops.geometry import Geometry
from torchadder.quant import file
from torchadder.quant.builder import ARITHMETIC, KINDS, PASSTHROUGH, Builder, Obstacle, Value
from torchadder.quant.graph import is_random, operator_of, sizes
from torchadder.quant.program import Logits, MaxPool, Program
from torchadder.quant.values import Accumulator, QuantizedValue, requantization


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
        shape = _image_shape(sizes(node)) or (1, 1, 1)
        ones, source = torch.ones(shape[0], dtype=torch.double), self.values[self.network.images]
        assert isinstance(source, QuantizedValue)
        return Accumulator(lambda sources, epilogue: MaxPool(sources, 1, 1, 0), source, shape, 1, ones, ones, node)  # type: ignore[arg-type,return-value]

    def _convolution(
        self,
        node: fx.Node,
        x: fx.Node,
        weight: fx.Node,
        bias: fx.Node | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        recenter: bool = False,
        *rules: str,
    ) -> Accumulator:
        """Lower a convolution of any kind; one without axes is a fully connected layer."""
        filters, dims = self.constant(weight), len(stride)
        if dims not in (0, 2):
            raise Obstacle(f"in {dims}-d", "take images (N, C, H, W)")
        if groups != 1:
            raise Obstacle(f"with groups={groups}", "take groups=1")
        if any(step != 1 for step in dilation):
            raise Obstacle(f"with dilation={tuple(dilation)}", "take dilation=1")
        if isinstance(padding, str):
            if padding == "same" and any(length % 2 == 0 for length in filters.shape[2:]):
                raise Obstacle("with padding='same' and an even kernel", "take an odd kernel")
            padding = [(length - 1) // 2 * (padding == "same") for length in filters.shape[2:]]
        if any(p >= k for p, k in zip(padding, filters.shape[2:], strict=True)):
            raise Obstacle(f"with padding={tuple(padding)} as wide as its kernel", "take less padding")
        kind, axes = KINDS[operator_of(node)], (stride, padding)
        return self.layer(kind, node, x, filters, self.constant(bias), *axes, recenter)

    def _linear(self, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Accumulator:
        return self._convolution(node, x, weight, bias, (), (), ())

    def _normalise(
        self,
        node: fx.Node,
        x: fx.Node,
        weight: fx.Node | None,
        bias: fx.Node | None,
        mean: fx.Node,
        var: fx.Node,
        training: bool,
        momentum: float,
        eps: float,
        cudnn: bool,
    ) -> Value:
        scale = (self.constant(var).double() + eps).rsqrt()
        scale = scale if weight is None else scale * self.constant(weight).double()
        if not bool(scale.isfinite().all()):
            raise Obstacle("with negative variances", "train it anew")
        shift = torch.zeros_like(scale) if bias is None else self.constant(bias).double()
        return self._affine(node, x, self.constant(mean).double(), scale, shift)

    def _affine(self, node: fx.Node, x_node: fx.Node, mean: Tensor, scale: Tensor, bias: Tensor) -> Value:
        """Lower y = (x - mean) * scale + bias; the constants are float64 (C,), (1,), or (F,) of flattened values.

        It is folded into the layer before it; else into the layers after it, where these do not pad, since 0 is
        another quantized value then; else it becomes a step.
        """
        x = self.value(x_node)
        length = max(map(len, (mean, scale, bias)))
        mean, scale, bias = (t.expand(length) for t in (mean, scale, bias))
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
        one, zero = torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
        if name in ("add", "sub"):  # factor * x + constant
            (x, constant), (factor, other) = ((b, a), factors[::-1]) if b in self.values else ((a, b), factors)
            return self._affine(node, x, zero, one * factor, self.by_channel(x, constant) * other)
        if b in self.values:
            if a in self.values or name == "div":
                raise Obstacle("of two values that depend on the image")
            a, b = b, a
        c = self.by_channel(a, b)
        return self._affine(node, a, zero, c if name == "mul" else 1 / c, zero)

    def _negative(self, node: fx.Node, x: fx.Node) -> Value:
        one = torch.ones(1, dtype=torch.double)
        return self._affine(node, x, 0 * one, -one, 0 * one)

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

    def _relu(self, node: fx.Node, x_node: fx.Node) -> QuantizedValue:
        x = self.value(x_node)
        if isinstance(x, QuantizedValue):
            x = self.pooled(node, x)
        return self.requantize(replace(x, node=node))  # its range begins at 0, so the clamp to 0 is the ReLU

    def _max_pool(
        self,
        node: fx.Node,
        x_node: fx.Node,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        ceil_mode: bool = False,
    ) -> QuantizedValue:
        kernel, stride, padding, dilation = map(_pair, (kernel, stride or kernel, padding, dilation))
        if dilation != (1, 1):
            raise Obstacle(f"with dilation={dilation}", "take dilation=1")
        if any(a != b for a, b in (kernel, stride, padding)):
            raise Obstacle("with a kernel, stride or padding that is not square", "take a square one")
        x = self.materialize(x_node)
        shape = self._window_shape(node, x, kernel, stride, padding)
        self.append(node, MaxPool([x.index], kernel[0], stride[0], padding[0]))
        return replace(x, index=len(self.steps), shape=shape)

    def _average_pool(
        self,
        node: fx.Node,
        x_node: fx.Node,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Value:
        kernel, stride = _pair(kernel), _pair(stride or kernel)
        if _pair(padding) != (0, 0) or divisor not in (None, math.prod(kernel)):
            raise Obstacle("with padding or another divisor", "take neither")
        if kernel == stride == (1, 1):
            return self.value(x_node)
        x = self.materialize(x_node)
        self._window_shape(node, x, kernel, stride, (0, 0))
        return self.pooled(node, x, kernel, stride)

    def _adaptive_pool(self, node: fx.Node, x: fx.Node, output: Sequence[int]) -> Value:
        size, wanted = sizes(x)[1:], _pair(output)
        if size == (1, 1):  # each pixel of the output is a copy
            return self.value(x)
        if any(a % b for a, b in zip(size, wanted, strict=True)):
            raise Obstacle(f"from {size[0]} x {size[1]} to {wanted[0]} x {wanted[1]}", "take windows of one size")
        return self._average_pool(node, x, [a // b for a, b in zip(size, wanted, strict=True)])

    def _mean(self, node: fx.Node, x: fx.Node, axes: Sequence[int] = (), keepdim: bool = False, **kwargs: Any) -> Value:
        if len(sizes(x)) != 3 or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise Obstacle(f"over axes {[*axes]}", "only a mean over height and width has an integer form")
        size = sizes(x)[1], sizes(x)[2]
        return self.value(x) if size == (1, 1) else self.pooled(node, self.materialize(x), size)

    def _slice(
        self, node: fx.Node, x_node: fx.Node, axis: int = 0, start: int | None = None, end: Any = None, step: int = 1
    ) -> Value:
        """Lower a slice that takes every pixel, or every second one, as a pooling of one pixel that keeps the scale."""
        whole = (sys.maxsize, *sizes(x_node))[axis]
        is_whole = not start and (end is None or (isinstance(end, int) and end >= whole))
        if not is_whole or (step > 1 and axis not in (2, 3)):
            end = "the end" if end == sys.maxsize else end
            raise Obstacle(f"of axis {axis} from {start or 0} to {end}", "take whole axes, or every second pixel")
        if step == 1:
            return self.value(x_node)
        x = self.materialize(x_node)
        pooled = self.pooled(node, x, (1, 1), (step, 1) if axis == 2 else (1, step))
        # The values of x may be images, which have 8 bits whatever those of the program.
        epilogue = requantization(pooled.scale, pooled.bias, 255, x.scale, x.zero_point, 255)
        self.append(node, pooled.step([x.index], epilogue))
        return replace(x, index=len(self.steps), shape=pooled.shape)

    def _pad(
        self, node: fx.Node, x: fx.Node, pad: Sequence[int], mode: str = "constant", value: float | None = None
    ) -> Value:
        """Lower channels of zeros before and after the others."""
        if not any(pad):
            return self.value(x)
        if mode != "constant" or value or len(pad) != 6 or any(pad[:4]) or min(pad) < 0:
            raise Obstacle(f"of {mode} {tuple(pad)}", "let a layer pad zeros, on both sides")
        return self.identity_layer(node, self.materialize(x), pad[4], pad[5])

    def _reshape(self, node: fx.Node, x: fx.Node, shape: Sequence[int]) -> Value:
        """Lower what flattens an image, or gives one back its axes."""
        before, after = sizes(x), sizes(node)
        is_flat = after in (before, (math.prod(before),))
        if not is_flat and after != self.value(x).shape:
            raise Obstacle(f"from {('N', *before)} to {('N', *after)}", "flatten all axes but the first")
        return self.value(x, repeats=True)

    def _passthrough(self, node: fx.Node, x: fx.Node, *args: Any, **kwargs: Any) -> Value:
        return self.value(x, repeats=True)

    def _output(self, node: fx.Node) -> None:
        x = self.value(node)
        if x.shape[1:] != (1, 1) or len(sizes(node)) not in (1, 3):
            shape = ("N", *sizes(node))
            raise Obstacle(f"of shape {shape}", "end in a layer of logits (N, classes), or in a global pooling")
        if isinstance(x, QuantizedValue) or not x.is_layer or x.shortcut:
            x = self.identity_layer(node, self.materialize(node))
        self.append(node, x.step([x.source.index], Logits(x.scale.float(), x.bias.float())))

    def _window_shape(
        self, node: fx.Node, x: QuantizedValue, kernel: Any, stride: Any, padding: Any
    ) -> tuple[int, int, int]:
        """Return the shape after a pooling, which must be that of the network: ceil_mode may have added windows."""
        size = Geometry(stride, padding, (1, 1), 1).output_size(x.shape[1:], kernel)
        if size != sizes(node)[1:]:
            raise Obstacle("with ceil_mode", "take ceil_mode=False, or images that the windows fill")
        return (x.shape[0], size[0], size[1])


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def _spread(numbers: Tensor, length: int) -> Tensor:
    """Return one number for each value of a flattened image, where ``numbers`` has one for each channel."""
    return numbers if len(numbers) in (1, length) else numbers.repeat_interleave(length // len(numbers))


def _pads(layer: fx.Node) -> bool:
    """Return whether a convolution pads its input."""
    padding: Any = layer.args[4] if len(layer.args) > 4 else ()
    return padding == "same" or any(padding)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if not shape or not all(isinstance(side, int) for side in shape):  # it depends on the number of images
        return None
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)


HANDLERS: dict[str, Callable[..., Value]] = {
    **dict.fromkeys(("aten::conv2d", "torchadder::adder_conv", "torchadder::binary_conv"), Lowering._convolution),
    "aten::linear": Lowering._linear,
    "aten::batch_norm": Lowering._normalise,
    "aten::relu": Lowering._relu,
    **dict.fromkeys(ARITHMETIC, Lowering._arithmetic),
    "aten::neg": Lowering._negative,
    "aten::max_pool2d": Lowering._max_pool,
    "aten::avg_pool2d": Lowering._average_pool,
    "aten::adaptive_avg_pool2d": Lowering._adaptive_pool,
    "aten::mean": Lowering._mean,
    "aten::slice": Lowering._slice,
    "aten::pad": Lowering._pad,
    **dict.fromkeys(PASSTHROUGH, Lowering._passthrough),
    "aten::reshape": Lowering._reshape,
}

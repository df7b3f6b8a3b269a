"""Write an integer program in standard operators of ONNX that compute the same integers, and the same logits.

    quantized images   Div, Add, Round, Clip, Cast
    adder layer        AdderConv of domain torchadder on floating point numbers, which hold its integer sums exactly
    other layers       ConvInteger
    requantization     Mul, Add, Div, Clip on int32
    pooling            MaxPool; ConvInteger with filters of ones
    table, concat      Gather, Concat

The steps and their meaning stand in torchadder.quant.steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchadder.export.onnx import functions
from torchadder.quant.program import Program
from torchadder.quant.steps import (
    AveragePool,
    Concat,
    Layer,
    Logits,
    MaxPool,
    Requantization,
    Sides,
    Table,
    four_sides,
    largest_accumulator,
    mean_unit,
    pixels_of_windows,
)

EXACT = 1 << 24  # float32 holds all integers up to this
WEIGHT_ZERO = 128  # the uint8 of weight 0: with int8 weights ONNX Runtime's kernels may saturate without VNNI
MOST_SHIFT = 30  # 2**31 is no int32


def program_to_onnx(program: Program) -> Any:
    """Return an onnx.ModelProto: images float32 (batch, C, H, W) -> logits float32 (batch, classes)."""
    from onnx import helper

    return _Draft(program).model(helper)


class _Draft:
    """Collect the nodes and constants of a program. A method adds the nodes of one step and returns their output."""

    def __init__(self, program: Program):
        self.program = program
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.prefix = ""
        self.is_adder = False

    def model(self, helper: Any) -> Any:
        program = self.program
        self.prefix = "images"
        values: list[str] = [self.quantized("images")]
        shapes: list[tuple[int, ...]] = [program.shape]
        steps: Any = program.steps
        for number, step in enumerate(steps):
            self.prefix = f"step_{number}"
            values.append(self.step(step, [values[i] for i in step.sources], shapes[step.sources[0]]))
            output = step(*(torch.zeros(1, *shapes[i], dtype=torch.uint8) for i in step.sources))
            shapes.append(tuple(output.shape[1:]))
        self.add("Flatten", [values[-1]], output="logits")
        shape = ["batch", *program.shape]
        graph = helper.make_graph(
            self.nodes,
            "program",
            [helper.make_tensor_value_info("images", 1, shape)],
            [helper.make_tensor_value_info("logits", 1, ["batch", program.classes])],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", functions.OPSET)]
        opsets += [helper.make_opsetid(functions.DOMAIN, functions.VERSION)] * self.is_adder
        used = [functions.function("AdderConv")] * self.is_adder
        return helper.make_model(
            graph, functions=used, opset_imports=opsets, ir_version=functions.IR_VERSION, producer_name="torchadder"
        )

    def add(self, operator: str, inputs: Sequence[str], *, output: str = "", domain: str = "", **options: Any) -> str:
        """Add a node and return the name of its output; ``options`` are its attributes."""
        from onnx import helper

        output = output or f"{self.prefix}_{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **options))
        return output

    def constant(self, value: Any, dtype: str) -> str:
        """Add a constant and return its name. ``value`` is a tensor or a number."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), name)
        return name

    def by_channel(self, values: Tensor, dtype: str) -> str:
        return self.constant(values.view(-1, 1, 1), dtype)

    def cast(self, value: str, dtype: str) -> str:
        from onnx import helper

        return self.add("Cast", [value], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def quantized(self, images: str) -> str:
        program = self.program
        scaled = self.add("Div", [images, self.by_channel(program.scale, "float32")])
        rounded = self.add("Round", [self.add("Add", [scaled, self.by_channel(program.zero_point, "float32")])])
        numbers = self.add("Where", [self.add("IsNaN", [rounded]), self.constant(0, "float32"), rounded])
        limits = [self.constant(limit, "float32") for limit in (0, program.qmax)]
        return self.cast(self.add("Clip", [numbers, *limits]), "uint8")

    def step(self, step: Any, sources: list[str], shape: tuple[int, ...]) -> str:
        """Add a step, whose first source has ``shape`` (C, H, W)."""
        match step:
            case Layer():
                sums = self.layer(step, sources[0])
                if isinstance(step.epilogue, Logits):
                    numbers = self.cast(sums, "float32")
                    scaled = self.add("Mul", [numbers, self.by_channel(step.epilogue.scale, "float32")])
                    return self.add("Add", [scaled, self.by_channel(step.epilogue.bias, "float32")])
                return self.requantized(step.epilogue, sums, *sources[1:])
            case MaxPool():
                padded = self.padded(sources[0], four_sides(step.padding), "uint8")
                kernel, stride = (four_sides(axes)[:2] for axes in (step.kernel, step.stride))
                return self.add("MaxPool", [padded], kernel_shape=kernel, strides=stride)
            case AveragePool():
                return self.requantized(step.epilogue, self.sums_of_windows(step, sources[0], shape))
            case Concat():
                return self.requantized(step.epilogue, self.cast(self.add("Concat", sources, axis=1), "int32"))
            case Table():
                entries = self.cast(sources[0], "int32")
                if len(step.table) > 1:
                    rows = 256 * torch.arange(len(step.table))
                    entries = self.add("Add", [entries, self.by_channel(rows, "int32")])
                return self.add("Gather", [self.constant(step.table.flatten(), "uint8"), entries])
        raise TypeError(f"a step of kind {step.kind}")

    def layer(self, step: Layer, x: str) -> str:
        """Add the accumulators of a layer, int32 (N, C_out, H, W)."""
        zero, sides = step.zero_point, four_sides(step.padding)
        geometry: dict[str, Any] = {"strides": [*step.stride], "dilations": [*step.dilation], "group": step.groups}
        if step.kind == "adder":
            # |x - w| = |(x - zero_point) - (w - zero_point)|, where 0 fills the padding
            self.is_adder = True
            dtype = "float32" if largest_accumulator(step.kind, step.weight) < EXACT else "float64"
            of_group = zero.int().view(step.groups, 1, -1, 1, 1)
            weight = (step.weight.int().unflatten(0, (step.groups, -1)) - of_group).flatten(0, 1)
            shifted = self.add("Sub", [self.cast(x, dtype), self.by_channel(zero, dtype)])
            inputs = [shifted, *(self.constant(tensor, dtype) for tensor in (weight, torch.zeros(len(weight))))]
            sums = self.add("AdderConv", inputs, domain=functions.DOMAIN, pads=[*sides], recenter=0, **geometry)
            return self.cast(self.add("Neg", [sums]), "int32")
        if step.kind == "binary":
            # The sign +1 is the number 2 and -1 is 0. 1 is no sign: it fills the padding, as the zero point of x does.
            is_negative = self.add("Less", [self.cast(x, "int32"), self.by_channel(zero, "int32")])
            is_positive = self.cast(self.add("Not", [is_negative]), "uint8")
            x, pads, x_zero = self.add("Add", [is_positive, is_positive]), [*sides], 1
        else:
            x, pads, x_zero = self.padded_by_channel(x, zero, sides), [0] * 4, 0
        inputs = [x, self.constant(step.weight.int() + WEIGHT_ZERO, "uint8")]
        inputs += [self.constant(number, "uint8") for number in (x_zero, WEIGHT_ZERO)]
        return self.add("ConvInteger", inputs, pads=pads, **geometry)

    def padded_by_channel(self, x: str, zero: Tensor, sides: Sides) -> str:
        """Pad values with the zero point of their channel."""
        if not any(sides):
            return x
        if len(zero.unique()) == 1:
            return self.padded(x, sides, "uint8", int(zero[0]))
        by_channel = self.by_channel(zero, "int32")
        shifted = self.padded(self.add("Sub", [self.cast(x, "int32"), by_channel]), sides, "int32")
        return self.cast(self.add("Add", [shifted, by_channel]), "uint8")

    def padded(self, x: str, sides: Sides, dtype: str, value: int = 0) -> str:
        if not any(sides):
            return x
        pads = torch.tensor([0, 0, *sides[:2], 0, 0, *sides[2:]])
        return self.add("Pad", [x, self.constant(pads, "int64"), self.constant(value, dtype)])

    def sums_of_windows(self, step: AveragePool, x: str, shape: tuple[int, ...]) -> str:
        sides, channels = four_sides(step.padding), shape[0]
        counts = pixels_of_windows(shape[1:], step.kernel, step.stride, sides)
        ones = self.constant(torch.ones(channels, 1, *step.kernel), "uint8")
        pads, strides = [*sides], [*step.stride]
        sums = self.add("ConvInteger", [x, ones], pads=pads, strides=strides, group=channels)
        factors = mean_unit(counts) // counts
        return sums if (factors == 1).all() else self.add("Mul", [sums, self.constant(factors, "int32")])

    def requantized(self, epilogue: Requantization, sums: str, *shortcut: str) -> str:
        if epilogue.pre_shift:
            # Mod has the sign of the divisor, so that the quotient is rounded down; Div alone rounds towards 0
            unit = self.constant(1 << epilogue.pre_shift, "int32")
            sums = self.add("Div", [self.add("Sub", [sums, self.add("Mod", [sums, unit])]), unit])
        total = self.add("Mul", [sums, self.by_channel(epilogue.multiplier, "int32")])
        total = self.add("Add", [total, self.by_channel(epilogue.offset, "int32")])
        if epilogue.factor is not None:
            real = self.add("Mul", [self.cast(shortcut[0], "int32"), self.by_channel(epilogue.factor, "int32")])
            total = self.add("Add", [total, real])
        # Div rounds a negative number up, >> rounds it down. Both results are at most 0, and Clip makes 0 of them.
        for shift in (epilogue.shift.clamp(max=MOST_SHIFT), (epilogue.shift - MOST_SHIFT).clamp(min=0)):
            if shift.any():
                total = self.add("Div", [total, self.by_channel(1 << shift.long(), "int32")])
        limits = [self.constant(limit, "int32") for limit in (0, epilogue.qmax)]
        return self.cast(self.add("Clip", [total, *limits]), "uint8")

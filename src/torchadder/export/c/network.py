"""Read a quantized network for the C generator: the steps of a .tadder file with their shapes, and nothing unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.data.preprocessing import Preprocessing
from torchadder.errors import UserError, shortened
from torchadder.quant import file
from torchadder.quant.program import Program
from torchadder.quant.steps import Layer, Logits, Requantization, Sides, four_sides

Shape = tuple[int, int, int]  # C, H, W

# The attributes of a step in the head of a file that have a form in C; another one is refused.
OF_LAYERS, OF_POOLINGS = {"stride", "padding", "dilation", "groups", "filters"}, {"kernel", "stride", "padding"}
ATTRIBUTES: dict[str, set[str]] = {
    "adder": OF_LAYERS,
    "conv": OF_LAYERS,
    "binary": OF_LAYERS,
    "max_pool": OF_POOLINGS,
    "average_pool": OF_POOLINGS,
    "table": set(),
    "concat": set(),
}
EPILOGUE = {"op", "sources", "highest", "pre"}
TENSORS = {"weight", "zero_point", "multiplier", "offset", "shift", "factor", "scale", "bias", "table"}


@dataclass(frozen=True)
class Step:
    """Describe a step: what the head of the file says, and its module in the program.

    ``shape_in``, ``shape_out``: (C, H, W). ``largest``: the largest value that its source can have.
    """

    number: int
    op: str
    module: Any
    sources: tuple[int, ...]
    shape_in: Shape
    shape_out: Shape
    largest: int

    @property
    def kernel(self) -> tuple[int, int]:
        rows, columns = self.module.weight.shape[2:] if isinstance(self.module, Layer) else _pair(self.module.kernel)
        return rows, columns

    @property
    def stride(self) -> tuple[int, int]:
        return _pair(self.module.stride)

    @property
    def padding(self) -> Sides:
        return four_sides(self.module.padding)

    @property
    def window(self) -> tuple[int, int]:
        """Return the rows and columns of the source that a kernel spans."""
        dilation = self.module.dilation if isinstance(self.module, Layer) else (1, 1)
        rows, columns = (d * (k - 1) + 1 for k, d in zip(self.kernel, dilation, strict=True))
        return rows, columns

    @property
    def is_depthwise(self) -> bool:
        """Return whether the step is a layer with one filter of one channel for each channel."""
        return isinstance(self.module, Layer) and self.module.groups == self.shape_in[0] == len(self.module.weight)

    @property
    def epilogue(self) -> Requantization | Logits | None:
        return getattr(self.module, "epilogue", None)


@dataclass(frozen=True)
class Network:
    """Hold a program with the shape of each value. ``sha256``: of the file. ``about``: what it keeps besides."""

    program: Program
    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]  # of value 0, the input, and of the output of each step
    about: Mapping[str, Any]
    sha256: str

    @classmethod
    def of(cls, source: Program | str | Path) -> Network:
        """Read a program or a ``.tadder`` file. Raises UserError for a damaged file and for what has no form in C."""
        if isinstance(source, Program):
            program, content, name = source, source.to_bytes(), "the program"
            file.check(content, name)
        else:
            content, name = file.read(source), str(source)
            program = Program.from_bytes(content, name)
        head = file.head_of(content, name)
        shapes, largest = [program.shape], [program.qmax]
        steps = []
        for number, (entry, module) in enumerate(zip(head["steps"], program.steps, strict=True)):
            _refuse_unknown(number, entry, module)
            step = _step(number, entry, module, shapes, largest)
            steps.append(step)
            shapes.append(step.shape_out)
            largest.append(int(step.module.table.max()) if step.op == "table" else entry.get("highest", step.largest))
        epilogue = steps[-1].epilogue
        if not isinstance(epilogue, Logits) or not _finite(epilogue.scale, epilogue.bias):
            raise UserError(f"{name} gives no finite logits: quantize it again")
        return cls(program, tuple(steps), tuple(shapes), head["about"], hashlib.sha256(content).hexdigest())

    def pixel_table(self) -> Tensor | None:
        """Return the quantized value of each pixel, uint8 (C, 256); None where the file does not say how to get it."""
        try:
            preprocessing = Preprocessing.from_dict(self.about, self.program.shape[0])
        except ValueError:
            return None
        channels = self.program.shape[0]
        pixels = torch.arange(256, dtype=torch.uint8).expand(1, channels, 1, 256).contiguous()
        return self.program.quantize(preprocessing.normalization(pixels))[0, :, 0]

    def accumulators(self, q: Tensor) -> Tensor:
        """Return the accumulators of the last layer, int32 (N, classes), for values ``q``, uint8 (N, C, H, W)."""
        values = [q]
        for step in self.steps[:-1]:
            values.append(step.module(*(values[i] for i in step.sources)))
        last = self.steps[-1]
        return last.module.accumulate(values[last.sources[0]]).flatten(1)


def _refuse_unknown(number: int, entry: Mapping[str, Any], module: nn.Module) -> None:
    """Raise UserError where a step has a kind, an attribute or a tensor that this package does not know."""
    op = entry["op"]
    unknown: list[str] = []
    if op in ATTRIBUTES:
        unknown = [f"{name}={entry[name]}" for name in sorted(set(entry) - ATTRIBUTES[op] - EPILOGUE)]
        unknown += sorted({name.rpartition(".")[2] for name, _ in module.named_buffers()} - TENSORS)
    if op not in ATTRIBUTES or unknown:
        what = f"{op} with {shortened(unknown)}" if unknown else op
        raise UserError(f"step {number}, {what}: it has no form in C; run the file with torchadder.Engine")


def _step(number: int, entry: Mapping[str, Any], module: Any, shapes: list[Shape], largest: list[int]) -> Step:
    sources = tuple(entry["sources"])
    shape_in = shapes[sources[0]]
    if entry["op"] in ("table", "concat"):
        channels = sum(shapes[source][0] for source in sources)
        return Step(number, entry["op"], module, sources, shape_in, (channels, *shape_in[1:]), largest[sources[0]])
    step = Step(number, entry["op"], module, sources, shape_in, shape_in, largest[sources[0]])
    channels = len(module.weight) if isinstance(module, Layer) else shape_in[0]
    top, left, bottom, right = step.padding
    rows, columns = (
        (side + pads - window) // stride + 1
        for side, pads, window, stride in zip(
            shape_in[1:], (top + bottom, left + right), step.window, step.stride, strict=True
        )
    )
    most = step.largest
    if isinstance(module, Layer) and any(step.padding):
        most = max(most, int(module.zero_point.max()))
    return replace(step, shape_out=(channels, rows, columns), largest=most)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)

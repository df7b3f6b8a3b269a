"""Read a quantized network for the C generator: the steps of a .tadder file with their shapes, and nothing unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.data.preprocessing import Preprocessing
from torchadder.errors import UserError, shortened
from torchadder.quant import file
from torchadder.quant.program import Layer, Logits, Program, Requantization, four_sides

Shape = tuple[int, int, int]  # C, H, W

# The attributes of a step in the head of a file that have a form in C; another one is refused.
ATTRIBUTES = {
    "adder": {"stride", "padding"},
    "conv": {"stride", "padding"},
    "binary": {"stride", "padding"},
    "max_pool": {"kernel", "stride", "padding"},
    "average_pool": {"kernel", "stride"},
    "table": set[str](),
    "concat": set[str](),
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
            program, content, name = Program.load(source), file.read(source), str(source)
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
        if op == "max_pool":  # a list is one of an axis or side each: the window is no square
            unknown += [f"{name}={entry[name]}" for name in ATTRIBUTES[op] if isinstance(entry[name], list)]
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
    if isinstance(module, Layer):
        channels, kernel, padding = len(module.weight), tuple(module.weight.shape[2:]), module.padding
        stride = module.stride
    else:
        channels = shape_in[0]
        kernel, stride, padding = _pair(module.kernel), _pair(module.stride), module.padding
    top, left, bottom, right = four_sides(padding)
    rows, columns = (
        (side + pads - k) // step + 1
        for side, k, step, pads in zip(shape_in[1:], kernel, stride, (top + bottom, left + right), strict=True)
    )
    most = largest[sources[0]]
    if isinstance(module, Layer) and any(padding):
        most = max(most, int(module.zero_point.max()))
    return Step(number, entry["op"], module, sources, shape_in, (channels, rows, columns), most)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)

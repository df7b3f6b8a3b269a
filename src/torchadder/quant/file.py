"""The file of an integer program, ``.tadder``: safetensors, with the program as metadata.

    metadata   tadder: JSON {"version", "input", "steps", "about"}; one entry, since the order of several is not fixed
    tensors    input.scale, input.zero float32 (C,); of step i what it has of i.weight, i.zero, i.multiplier, i.offset,
               i.shift, i.factor, i.gain, i.bias

"about" is for readers, the program runs without: strings and numbers by name. torchadder quantize keeps there

    torchadder, model, op, dataset            the version, and what was quantised
    bits, method, calibration_images          how, as in torchadder.quantize
    finetune_epochs                           of quantisation-aware training before
    float_accuracy                            of the model on the test images, in percent, where it was tested
    mode, mean, std, part                     what becomes of an image, see data.preprocessing
    classes                                   JSON list of the names of the classes, where they have any

A file may come from a stranger: every number is checked before it is used, so that no program that is read leads out
of its tensors or out of 32 bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchadder import files
from torchadder.errors import UserError
from torchadder.ops.geometry import Geometry
from torchadder.quant.program import (
    AveragePool,
    Layer,
    Logits,
    MaxPool,
    Program,
    Requantisation,
    Step,
    largest_sum,
)

FORMAT, VERSION, SUFFIX = "tadder", 1, ".tadder"
LIMIT = 1 << 31
MAX_SIDE, MAX_CHANNELS, MAX_STEPS, MAX_CODES = 1 << 14, 1 << 16, 1 << 12, 1 << 28
WEIGHTS = {"adder": torch.uint8, "conv": torch.int8, "binary": torch.int8}


def write(program: Program, path: Path, about: Mapping[str, str | int | float] | None = None) -> None:
    """Save ``program``, whole or not at all; ``about`` is kept beside it. Raises UserError where the disk refuses."""
    try:
        files.write_bytes(path, to_bytes(program, about))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def to_bytes(program: Program, about: Mapping[str, str | int | float] | None = None) -> bytes:
    """The content of the file of ``program``."""
    steps, tensors = [], {"input.scale": program.scale, "input.zero": program.zero}
    for number, step in enumerate(program.steps):
        steps.append(_described(step))
        tensors |= {f"{number}.{name.rpartition('.')[2]}": value for name, value in step.named_buffers()}
    head = {
        "version": VERSION,
        "input": {"shape": [*program.shape], "highest": program.highest},
        "steps": steps,
        "about": dict(about or {}),
    }
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    return safetensors.torch.save(own, {FORMAT: json.dumps(head)})  # which refuses tensors that share memory


def read(path: Path) -> tuple[Program, dict[str, Any]]:
    """The program in a file, and what was kept beside it. Raises UserError that says what is wrong with the file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    try:
        if FORMAT not in metadata:
            raise ValueError("it is no .tadder file")
        head = json.loads(metadata[FORMAT])
        if head["version"] != VERSION:
            raise ValueError(f"its version is {head['version']!r}, this torchadder reads {VERSION}")
        about = head["about"]
        if not isinstance(about, dict) or any(type(value) not in (str, int, float) for value in about.values()):
            raise ValueError("what is kept beside it is no text and no numbers")
        return _program(head, tensors), about
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no sound program: {text}") from error


def _described(step: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"sources": [*step.sources]}
    if isinstance(step, Layer):
        about |= {"op": step.kind, "stride": [*step.stride], "padding": [*step.padding]}
    elif isinstance(step, MaxPool):
        about |= {"op": "max_pool", "kernel": step.kernel, "stride": step.stride, "padding": step.padding}
    else:
        about |= {"op": "average_pool", "kernel": [*step.kernel], "stride": [*step.stride]}
    epilogue = getattr(step, "epilogue", None)
    return (
        {**about, "highest": epilogue.highest, "pre": epilogue.pre} if isinstance(epilogue, Requantisation) else about
    )


def _program(head: dict[str, Any], tensors: dict[str, Tensor]) -> Program:
    channels, height, width = (_whole(v, "input size", 1, MAX_SIDE) for v in head["input"]["shape"])
    shape = channels, height, width
    scale, zero = (_tensor(tensors, f"input.{name}", torch.float32, (shape[0],)) for name in ("scale", "zero"))
    if not (scale.isfinite().all() and (scale > 0).all() and zero.isfinite().all()):
        raise ValueError("the scale of its input is no positive number")
    if not 1 <= len(head["steps"]) <= MAX_STEPS:
        raise ValueError(f"it has {len(head['steps'])} steps, expected 1 to {MAX_STEPS}")
    if math.prod(shape) > MAX_CODES:
        raise ValueError(f"its images have {math.prod(shape):,} codes, expected at most {MAX_CODES:,}")
    shapes: list[tuple[int, ...]] = [shape]
    steps: list[Step] = []
    for number, about in enumerate(head["steps"]):
        step, made = _step(number, about, tensors, shapes, last=number == len(head["steps"]) - 1)
        if math.prod(made) > MAX_CODES:
            raise ValueError(f"step {number} makes {math.prod(made):,} codes an image, expected at most {MAX_CODES:,}")
        steps.append(step)
        shapes.append(made)
    _check_padding(steps)
    if tensors:
        raise ValueError(f"tensor {min(tensors)} belongs to no step")
    return Program(shape, scale, zero, steps, _whole(head["input"]["highest"], "highest code", 1, 255))


def _step(
    number: int, about: dict[str, Any], tensors: dict[str, Tensor], shapes: Sequence[tuple[int, ...]], last: bool
) -> tuple[Step, tuple[int, ...]]:
    """Step ``number`` and the shape (C, H, W) of what it makes; the tensors that it has are taken out."""
    sources = [_whole(source, f"source of step {number}", 0, number) for source in about["sources"]]
    op = about["op"]
    if op not in (*WEIGHTS, "max_pool", "average_pool"):
        raise ValueError(f"step {number} is {op!r}, which is unknown")
    if len(sources) not in ((1, 2) if op in WEIGHTS else (1,)):
        raise ValueError(f"step {number} has {len(sources)} sources")
    if op in WEIGHTS:
        return _layer(number, op, sources, about, tensors, shapes, last)
    if last:
        raise ValueError("its last step gives no logits")
    channels, *size = shapes[sources[0]]
    if op == "average_pool":
        window, steps = _pair(about, "kernel", 1), _pair(about, "stride", 1)
        made = _sizes(size, window, steps, (0, 0), number)
        epilogue = _requantisation(number, about, tensors, channels, 255 * window[0] * window[1], shortcut=False)
        return AveragePool(sources, window, steps, epilogue), (channels, *made)
    kernel = _whole(about["kernel"], "kernel", 1, MAX_SIDE)
    stride = _whole(about["stride"], "stride", 1, MAX_SIDE)
    padding = _whole(about["padding"], "padding", 0, kernel // 2)
    made = _sizes(size, (kernel, kernel), (stride, stride), (padding, padding), number)
    return MaxPool(sources, kernel, stride, padding), (channels, *made)


def _layer(
    number: int,
    kind: Any,
    sources: list[int],
    about: dict[str, Any],
    tensors: dict[str, Tensor],
    shapes: Sequence[tuple[int, ...]],
    last: bool,
) -> tuple[Layer, tuple[int, ...]]:
    channels, *size = shapes[sources[0]]
    weight = _tensor(tensors, f"{number}.weight", WEIGHTS[kind], None)
    if weight.dim() != 4 or weight.shape[1] != channels or not 1 <= weight.shape[0] <= MAX_CHANNELS:
        raise ValueError(f"step {number} has a weight {tuple(weight.shape)} for {channels} channels")
    if kind == "binary" and not (weight.int().abs() == 1).all():
        raise ValueError(f"step {number} has a binary weight that is neither 1 nor -1")
    stride, padding = _pair(about, "stride", 1), _pair(about, "padding", 0)
    if any(pad >= kernel for pad, kernel in zip(padding, weight.shape[2:], strict=True)):
        raise ValueError(f"step {number} has a padding {padding} as wide as its kernel")
    made = (len(weight), *_sizes(size, weight.shape[2:], stride, padding, number))
    largest = largest_sum(kind, weight)
    if largest >= LIMIT:
        raise ValueError(f"the sums of step {number} need more than 32 bits")
    zero = _tensor(tensors, f"{number}.zero", torch.uint8, (channels,))
    if not last:
        if len(sources) == 2 and shapes[sources[1]] != made:
            raise ValueError(f"step {number} adds {shapes[sources[1]]} to {made}")
        requantise = _requantisation(number, about, tensors, len(weight), largest, shortcut=len(sources) == 2)
        return Layer(kind, sources, weight, zero, stride, padding, requantise), made
    if made[1:] != (1, 1) or len(sources) > 1:
        raise ValueError("its last step gives no logits")
    gain, bias = (_tensor(tensors, f"{number}.{name}", torch.float32, made[:1]) for name in ("gain", "bias"))
    return Layer(kind, sources, weight, zero, stride, padding, Logits(gain, bias)), made


def _check_padding(steps: Sequence[Step]) -> None:
    """The adder layers that pad a value agree on its zero, so that the value may hold its padding."""
    zeros: dict[int, Tensor] = {}
    for layer in (step for step in steps if isinstance(step, Layer)):
        pads = layer.kind == "adder" and any(layer.padding)
        if pads and not zeros.setdefault(layer.sources[0], layer.zero).equal(layer.zero):
            raise ValueError(f"two layers pad value {layer.sources[0]} with two zeros")


def _pair(about: dict[str, Any], name: str, low: int) -> tuple[int, int]:
    rows, columns = (_whole(value, name, low, MAX_SIDE) for value in about[name])
    return rows, columns


def _requantisation(
    number: int, about: dict[str, Any], tensors: dict[str, Tensor], channels: int, largest: int, shortcut: bool
) -> Requantisation:
    names = ["multiplier", "offset", "shift", *(["factor"] if shortcut else [])]
    found = {name: _tensor(tensors, f"{number}.{name}", torch.int32, (channels,)) for name in names}
    if not ((found["shift"] >= 0) & (found["shift"] < 32)).all():
        raise ValueError(f"a shift of step {number} is not within 0 to 31")
    wide = {name: value.long().abs() for name, value in found.items()}
    pre = _whole(about["pre"], "pre", 0, 31)
    total = wide["multiplier"] * ((largest >> pre) + 1) + wide["offset"] + (wide["factor"] * 255 if shortcut else 0)
    if largest >= LIMIT or (total >= LIMIT).any():
        raise ValueError(f"step {number} needs more than 32 bits")
    return Requantisation(**found, highest=_whole(about["highest"], "highest code", 1, 255), pre=pre)


def _sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], number: int
) -> tuple[int, int]:
    height, width = Geometry(tuple(stride), tuple(padding), (1, 1), 1).output_size(size, kernel)
    if height < 1 or width < 1:
        raise ValueError(f"step {number} has a kernel {tuple(kernel)} beyond its input {tuple(size)}")
    return height, width


def _whole(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} {value!r} is out of range: expected {low} to {high}")
    return value


def _tensor(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...] | None) -> Tensor:
    tensor = tensors.pop(name)
    if tensor.dtype != dtype or (shape is not None and tuple(tensor.shape) != shape):
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape or ''}".rstrip())
    return tensor

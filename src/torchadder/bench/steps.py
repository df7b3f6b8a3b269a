"""The engine step by step: what each layer of a network takes, beside what its inner loop allows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from ..engine import Engine
from ..models import create_model
from ..models.registry import OPS
from ..quant import quantize
from ..quant.program import Layer, Program


def measure(name: str, op: str, repetitions: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a step, the input first: one image, one thread, medians; random weights.

    Element operations are those that the definition asks for, taps in the padding included.
    """
    if op not in OPS:
        raise ValueError(f"op {op!r} is unknown: expected {', '.join(OPS)}")
    progress(f"{name} {op}")
    torch.manual_seed(0)
    model = create_model(name, op)
    images = torch.randn(4, *model.input_size)
    update_bn([images], model)
    program = quantize(model.eval(), [images], method="max")
    engine = Engine(program, threads=1)
    image = images[:1]
    for _ in range(3):
        engine(image)
    seconds = zip(*(engine.profile(image) for _ in range(repetitions)), strict=True)
    shapes = _shapes(program)
    steps = zip(program.steps, engine.kernels(), shapes[1:], strict=True)
    about: list[dict[str, Any]] = [{"step": "input", "kernel": "codes", "operations": 0}]
    for step, kernel, shape in steps:
        weight = step.weight if isinstance(step, Layer) else None
        about.append(
            {
                "step": _title(step, shapes),
                "kernel": kernel,
                "operations": 0 if weight is None else weight.numel() * shape[1] * shape[2],
            }
        )
    rows = []
    for row, times in zip(about, seconds, strict=True):
        median = statistics.median(times)
        rows.append(
            {"model": name, "op": op, **row, "microseconds": median * 1e6, "giga_ops": row["operations"] / median / 1e9}
        )
    return rows


def _shapes(program: Program) -> list[tuple[int, int, int]]:
    """(C, H, W) of every value."""
    values = [torch.zeros(1, *program.shape, dtype=torch.uint8)]
    with torch.no_grad():
        for step in program.steps:
            values.append(step(*(values[source] for source in step.sources)))  # type: ignore[union-attr]
    return [(value.shape[1], value.shape[2], value.shape[3]) for value in values]


def _title(step: Any, shapes: list[tuple[int, int, int]]) -> str:
    channels, height, _ = shapes[step.sources[0]]
    if not isinstance(step, Layer):
        return f"{type(step).__name__} {channels} @{height}"
    c_out, _, *kernel = step.weight.shape
    stride = f"/{step.stride[0]}" if step.stride[0] > 1 else ""
    shortcut = " + shortcut" if len(step.sources) > 1 else ""
    return f"{step.kind} {channels}->{c_out} {kernel[0]}x{kernel[1]}{stride} @{height}{shortcut}"

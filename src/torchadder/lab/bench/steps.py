"""Measure the integer engine step by step: the kernel of each layer, its time and its rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.models.registry import OPS
from torchadder.quant import quantize
from torchadder.quant.program import Layer, Program

from .layers import LayerShape
from .networks import with_statistics


def measure(name: str, op: str, repetitions: int, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return one row for each step of a network with random weights, the quantization of the input first.

    Times are medians for one image on one thread. Element operations are those that the definition asks for, taps in
    the padding included; layers are square.
    """
    if op not in OPS:
        raise UserError(f"op={op} is unknown: choose {', '.join(OPS)}")
    show(f"{name} {op}")
    torch.manual_seed(0)
    model = create_model(name, op)
    images = torch.randn(4, *model.input_size)
    program = quantize(with_statistics(model, images), [images], method="max")
    engine = Engine(program, threads=1)
    image = images[:1]
    for _ in range(3):
        engine(image)
    seconds = zip(*(engine.profile(image) for _ in range(repetitions)), strict=True)
    steps: list[dict[str, Any]] = [{"step": "input", "kernel": "quantize", "operations": 0}]
    for step, kernel, (channels, height) in zip(program.steps, engine.kernels(), _input_sizes(program), strict=True):
        if isinstance(step, Layer):
            filters, kernel_size = len(step.weight), step.weight.shape[-1]
            shape = LayerShape(channels, filters, kernel_size, step.stride[0], step.padding[0], height)
            title = f"{step.kind} {shape}{' + shortcut' if len(step.sources) > 1 else ''}"
            steps.append({"step": title, "kernel": kernel, "operations": shape.operations(1)})
        else:
            steps.append({"step": f"{type(step).__name__} {channels} @{height}", "kernel": kernel, "operations": 0})
    rows = []
    for about, times in zip(steps, seconds, strict=True):
        median = statistics.median(times)
        rate = about["operations"] / median / 1e9
        rows.append({"model": name, "op": op, **about, "microseconds": median * 1e6, "giga_ops": rate})
    return rows


def _input_sizes(program: Program) -> list[tuple[int, int]]:
    """Return the channels and the height of each step's input."""
    values = [torch.zeros(1, *program.shape, dtype=torch.uint8)]
    found = []
    with torch.no_grad():
        for step in program.steps:
            sources = [values[source] for source in step.sources]  # type: ignore[union-attr]
            found.append((sources[0].shape[1], sources[0].shape[2]))
            values.append(step(*sources))
    return found

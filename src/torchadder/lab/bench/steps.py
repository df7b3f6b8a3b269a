"""The engine step by step: what each layer of a network takes, beside what its inner loop allows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from torchadder.engine import Engine
from torchadder.models import create_model
from torchadder.models.registry import OPS
from torchadder.quant import quantize
from torchadder.quant.program import Layer, Program

from .layers import LayerShape
from .networks import with_statistics


def measure(name: str, op: str, repetitions: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a step, the input first: one image, one thread, medians; random weights.

    Element operations are those that the definition asks for, taps in the padding included; layers are square.
    """
    if op not in OPS:
        raise ValueError(f"op {op!r} is unknown: expected {', '.join(OPS)}")
    progress(f"{name} {op}")
    torch.manual_seed(0)
    model = create_model(name, op)
    images = torch.randn(4, *model.input_size)
    program = quantize(with_statistics(model, images), [images], method="max")
    engine = Engine(program, threads=1)
    image = images[:1]
    for _ in range(3):
        engine(image)
    seconds = zip(*(engine.profile(image) for _ in range(repetitions)), strict=True)
    about: list[dict[str, Any]] = [{"step": "input", "kernel": "codes", "operations": 0}]
    for step, kernel, (channels, height, _) in zip(program.steps, engine.kernels(), _sources(program), strict=True):
        if isinstance(step, Layer):
            shape = LayerShape(
                channels, len(step.weight), step.weight.shape[-1], step.stride[0], step.padding[0], height
            )
            title = f"{step.kind} {shape}{' + shortcut' if len(step.sources) > 1 else ''}"
            about.append({"step": title, "kernel": kernel, "operations": shape.operations(1)})
        else:
            about.append({"step": f"{type(step).__name__} {channels} @{height}", "kernel": kernel, "operations": 0})
    rows = []
    for row, times in zip(about, seconds, strict=True):
        median = statistics.median(times)
        rows.append(
            {"model": name, "op": op, **row, "microseconds": median * 1e6, "giga_ops": row["operations"] / median / 1e9}
        )
    return rows


def _sources(program: Program) -> list[tuple[int, int, int]]:
    """(C, H, W) of what each step reads."""
    values = [torch.zeros(1, *program.shape, dtype=torch.uint8)]
    found = []
    with torch.no_grad():
        for step in program.steps:
            sources = [values[source] for source in step.sources]  # type: ignore[union-attr]
            found.append((sources[0].shape[1], sources[0].shape[2], sources[0].shape[3]))
            values.append(step(*sources))
    return found

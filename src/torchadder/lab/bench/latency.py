"""Measure the latency of whole networks (AdderNet, binary network, CNN) in the best runtimes, and the engine's steps.

Every candidate has a process of its own, so that runtimes do not share threads or library versions. Repetitions are
interleaved (see timing.py), and the median is quoted. Latency is the wall time of one call for one batch, from float32
images to float32 logits, as `Engine.benchmark` measures it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.quant import quantize
from torchadder.quant.program import Program
from torchadder.quant.steps import Layer

from .candidates import ADDER_U8, CANDIDATES, Candidate, Worker
from .layers import LayerShape
from .networks import NetworkWriter, with_statistics
from .process import Process, ProcessError

MIN_SECONDS = 0.1  # of one repetition
TIMEOUT = 600.0  # seconds for one call to a candidate's process

Tell = Callable[[str], None]
Results = dict[Candidate, tuple[dict[str, Any], list[float]]]  # what it says about itself, and its seconds


def installed(warn: Tell, candidates: Sequence[Candidate] = CANDIDATES) -> list[Candidate]:
    """Return the candidates whose packages are installed; name the others in one line given to ``warn``."""
    absent = [candidate for candidate in candidates if candidate.missing]
    if absent:
        packages = ", ".join(dict.fromkeys(name for candidate in absent for name in candidate.missing))
        titles = "; ".join(candidate.title for candidate in absent)
        warn(f"left out: {titles}; {packages} not installed: pip install 'torchadder[bench]'")
    return [candidate for candidate in candidates if not candidate.missing]


def measure(
    name: str,
    batches: Iterable[int],
    thread_counts: Sequence[int],
    repetitions: int,
    candidates: Sequence[Candidate],
    show: Tell,
    warn: Tell,
    environment: Mapping[str, str] | None = None,
    min_seconds: float = MIN_SECONDS,
) -> list[dict[str, Any]]:
    """Return one row for each batch, number of threads and candidate of the model ``name``.

    ``ratio`` is a candidate's median over that of the 8-bit AdderNet; None if that was not measured.

    Args:
        show: is given a line for each setting, before it is measured.
        warn: is given a line for each candidate that fails; the others continue.
        environment: variables of the candidates' processes.
        min_seconds: the least time of one repetition, which has at least one call.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def start(target: Callable[[], Any]) -> Process:
            return stack.enter_context(closing(Process(target, Path(folder), environment)))

        processes = {candidate: start(Worker) for candidate in candidates}
        show(f"{name}: networks")
        packages = {package for candidate in candidates for package in candidate.packages}
        onnx, int8 = "onnx" in packages, "onnxruntime" in packages
        writer = start(NetworkWriter)
        try:
            writer.call("write", TIMEOUT, name=name, folder=folder, onnx=onnx, int8=int8)
        except ProcessError as error:
            raise UserError(f"{name}: the networks could not be made: {error}") from error
        writer.close()
        for batch in batches:
            for threads in thread_counts:
                setting = {"model": name, "batch": batch, "threads": threads}
                show(_title(setting))
                rows += _rows(setting, _run(processes, setting, repetitions, min_seconds, folder, warn))
    return rows


def _run(
    processes: dict[Candidate, Process],
    setting: dict[str, Any],
    repetitions: int,
    min_seconds: float,
    folder: str,
    warn: Tell,
) -> Results:
    """Open all candidates and interleave their repetitions; a candidate that fails is not in the result."""
    results: Results = {}

    def call(candidate: Candidate, method: str, **arguments: Any) -> Any:
        try:
            return processes[candidate].call(method, TIMEOUT, **arguments)
        except ProcessError as error:
            warn(f"{candidate.title} is left out of {_title(setting)}: {error}")
            results.pop(candidate, None)
            if not processes[candidate].alive:
                del processes[candidate]
            return None

    for candidate in list(processes):
        arguments = {"folder": folder, "batch": setting["batch"], "threads": setting["threads"]}
        about = call(candidate, "open", key=candidate.key, **arguments)
        if about is not None:
            results[candidate] = (about, [])
    for _ in range(repetitions):
        for candidate in list(results):
            seconds = call(candidate, "repeat", min_seconds=min_seconds)
            if seconds is not None:
                results[candidate][1].append(seconds)
    return results


def _title(setting: dict[str, Any]) -> str:
    threads = f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    return f"{setting['model']}, batch {setting['batch']}, {threads}"


def _rows(setting: dict[str, Any], results: Results) -> list[dict[str, Any]]:
    median = {candidate.key: statistics.median(seconds) for candidate, (_, seconds) in results.items()}
    return [
        {
            **setting,
            "candidate": candidate.key,
            "title": candidate.title,
            "runtime": candidate.runtime,
            "precision": candidate.precision,
            "milliseconds": median[candidate.key] * 1e3,
            "images_per_second": setting["batch"] / median[candidate.key],
            "ratio": median[candidate.key] / median[ADDER_U8] if ADDER_U8 in median else None,
            "minimum_ms": min(seconds) * 1e3,
            "spread": (max(seconds) - min(seconds)) / median[candidate.key],
            "n": len(seconds),
            "seconds": seconds,
            **about,
        }
        for candidate, (about, seconds) in results.items()
    ]


def measure_steps(name: str, op: str, repetitions: int, show: Tell) -> list[dict[str, Any]]:
    """Return one row for each step of the engine in a network with random weights, the input's quantization first.

    Times are medians for one image on one thread. Element operations are those that the definition asks for, taps in
    the padding included; layers are square.
    """
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
        rate = about["operations"] / median / 1e9 if about["operations"] else None  # a pooling may take no time
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

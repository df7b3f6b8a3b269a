"""Measure training steps (forward, backward, optimizer) and memory: AdderNet in floats and in integers, and CNN."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from torchadder.functional import GradientRule
from torchadder.models import create_model
from torchadder.optim import AdaptiveLR
from torchadder.train.memory import keep_freed_memory

from .layers import CPU, FORMATS
from .timing import Cpu, Device, best_by_prefix, interleaved, medians

OPS = ("adder", "int8", "conv")  # int8: the AdderNet that trains in integers, which a GPU does not
OTHER = "other"  # the row of a profile that holds whatever no other row names
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt()


def training_step(name: str, op: str, layout: str, batch: int, device: torch.device = CPU) -> Callable[[], object]:
    """Return a function that trains one step on random images with the paper's optimizer, and AdaptiveLR for adders."""
    rule = GradientRule(numbers="int8") if op == "int8" else None
    model = create_model(name, op="conv" if op == "conv" else "adder", grad=rule)
    model.to(device=device, memory_format=FORMATS[layout])  # type: ignore[call-overload]
    images = torch.randn(batch, *model.input_size, device=device).contiguous(memory_format=FORMATS[layout])
    labels = torch.randint(model.config["num_classes"], (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    if op != "conv":
        AdaptiveLR(optimizer)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def measure(
    name: str, batch: int, devices: Iterable[Device], repetitions: int, show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return one row for each device: seconds of a step of each network in each memory format, profile, peak memory.

    `ratio` and `int8_ratio` are the adder's medians over the CNN's, `memory_ratio` that of the peaks in float32, each
    in its better format.
    """
    keep_freed_memory()
    rows = []
    for device in devices:
        ops = OPS if isinstance(device, Cpu) else ("adder", "conv")
        show(f"{name}, batch {batch}, {device}")
        with device.settings():
            steps = {
                f"{op} {layout}": training_step(name, op, layout, batch, device.device)
                for op in ops
                for layout in FORMATS
            }
            seconds = interleaved(steps, repetitions, device.clock)
            median = medians(seconds)
            best = best_by_prefix(median)
            better = {op: min(FORMATS, key=lambda layout: median[f"{op} {layout}"]) for op in best}
            profiles = {op: profile(steps[f"{op} {better[op]}"], device.device) for op in ops}
            show(f"{name}, batch {batch}, {device}, memory")
            memory = {op: _memory(name, op, better[op], batch, device) for op in ops}
        row = {
            **{"model": name, "batch": batch, **device.fields},
            "seconds": seconds,
            "format": better,
            **{f"{op}_ms": value * 1e3 for op, value in best.items()},
            "ratio": best["adder"] / best["conv"],
            **({"int8_ratio": best["int8"] / best["conv"]} if "int8" in best else {}),
            "images_per_second": {op: batch / value for op, value in best.items()},
            "memory_mib": memory,
            "profile": profiles,
            # A very small step fits into memory that the warm-up left free: there is nothing to compare.
            "memory_ratio": memory["adder"]["step"] / memory["conv"]["step"] if memory["conv"]["step"] else None,
        }
        rows.append(row)
    return rows


def profile(
    step: Callable[[], object], device: torch.device = CPU, repetitions: int = 3, min_share: float = 0.005
) -> dict[str, float]:
    """Return the milliseconds of one step by operator, the longest first; they sum to the step under the profiler.

    An operator counts with the time that it spends in itself, not in operators that it calls; on a GPU the rows are
    kernels, copies and fills. The last row, OTHER, is everything else: operators below ``min_share`` of the step, the
    Python interpreter, and a GPU's idle time. Of the ``repetitions`` the one with the median time is taken.
    """
    gpu = device.type == "cuda"
    measured = []
    for _ in range(repetitions):
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as profiler:
            start = time.perf_counter()
            step()
            if gpu:
                torch.cuda.synchronize(device)
            milliseconds = (time.perf_counter() - start) * 1e3
        measured.append((milliseconds, profiler.key_averages()))
    milliseconds, events = sorted(measured, key=lambda one: one[0])[repetitions // 2]
    times = kernel_times(events) if gpu else operator_times(events)
    names = [name for name in sorted(times, key=lambda name: -times[name]) if times[name] >= min_share * milliseconds]
    named = {name: times[name] for name in names}
    return {**named, OTHER: milliseconds - sum(named.values())}


def operator_times(events: Iterable[Any]) -> dict[str, float]:
    """Return the milliseconds that each operator spends in itself on the CPU."""
    return {event.key: event.self_cpu_time_total / 1e3 for event in events if "::" in event.key}


def kernel_times(events: Iterable[Any]) -> dict[str, float]:
    """Return the milliseconds of each kernel on a GPU, without annotated ranges, which span kernels."""
    kernels = (e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
    return {event.key: event.self_device_time_total / 1e3 for event in kernels}


def _memory(name: str, op: str, layout: str, batch: int, device: Device) -> dict[str, float]:
    if isinstance(device, Cpu):
        return peak_memory(name, op, layout, batch, device.threads)
    return gpu_peak_memory(partial(training_step, name, op, layout, batch, device.device), device.device)


def gpu_peak_memory(make_step: Callable[[], Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Return the peak of allocated GPU memory during a step, in MiB, as {"step": ...}.

    It counts weights, activations, gradients, optimizer state and workspaces. The first step is left out because
    cuDNN tries its algorithms there.
    """
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    step = make_step()
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return {"step": (torch.cuda.max_memory_allocated(device) - before) / 2**20}


def peak_memory(name: str, op: str, layout: str, batch: int, threads: int) -> dict[str, float]:
    """Return the peak resident memory of fresh processes that train three steps, in MiB.

    "step": growth from just before the model is made: weights, activations, gradients, optimizer state and workspaces,
    without interpreter and libraries. Freed blocks of 1 MiB and more go back to the system here, so this is what the
    step needs. "malloc": the same as `torchadder train` has it, where malloc keeps freed blocks and fragments
    (median of three processes). "total": the whole process, likewise.
    """
    needed = _in_process(name, op, layout, batch, threads, True)
    kept = [_in_process(name, op, layout, batch, threads, False) for _ in range(3)]
    step, total = (statistics.median(values) for values in zip(*kept, strict=True))
    return {"step": needed[0], "malloc": step, "total": total}


def _in_process(*arguments: Any) -> tuple[float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth_and_peak, *arguments).result()


def _growth_and_peak(
    name: str, op: str, layout: str, batch: int, threads: int, return_blocks: bool
) -> tuple[float, float]:
    """Train three steps, and return the growth and the peak of this process's resident memory, in MiB."""
    if return_blocks:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    else:
        keep_freed_memory()
    torch.set_num_threads(threads)
    training_step(name, op, layout, 2)()  # loads libraries, thread pools and code before the count begins
    before = _peak_rss()
    step = training_step(name, op, layout, batch)
    for _ in range(3):
        step()
    return _peak_rss() - before, _peak_rss()


def _peak_rss() -> float:
    # getrusage would be wrong: its maximum survives exec and begins with the parent's.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")

"""Whole training steps (forward, backward, optimiser) of an AdderNet and of its CNN twin, and their memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from torchadder.models import create_model
from torchadder.optim import AdaptiveLR

from .devices import Cpu, Place
from .layers import CPU, FORMATS
from .timing import interleaved, medians

OPS = ("adder", "conv")
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt()


def training_step(name: str, op: str, layout: str, batch: int, device: torch.device = CPU) -> Callable[[], object]:
    """One step on random images: the paper's optimiser, the adder side with AdaptiveLR."""
    model = create_model(name, op=op)
    model.to(device=device, memory_format=FORMATS[layout])  # type: ignore[call-overload]
    images = torch.randn(batch, *model.input_size, device=device).contiguous(memory_format=FORMATS[layout])
    labels = torch.randint(model.config["num_classes"], (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    if op == "adder":
        AdaptiveLR(optimizer)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def measure(
    name: str,
    batch: int,
    places: Iterable[Place],
    repetitions: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each place: seconds a step of each side in each memory format, and peak memory.

    `ratio` is the adder's median over the CNN's, `memory_ratio` that of the peaks, each side in its better format.
    """
    rows = []
    for place in places:
        progress(f"{name}, batch {batch}, {place}")
        with place.in_use():
            steps = {
                f"{op} {layout}": training_step(name, op, layout, batch, place.device)
                for op in OPS
                for layout in FORMATS
            }
            seconds = interleaved(steps | place.rivals(steps), repetitions, place.clock(flush=False))
            middle = medians(seconds)
            sides = dict.fromkeys(side.partition(" ")[0] for side in middle)
            better = {op: min(FORMATS, key=lambda layout: middle[f"{op} {layout}"]) for op in sides}
            step = {op: middle[f"{op} {better[op]}"] for op in sides}
            profiles = {op: profile(steps[f"{op} {better[op]}"], place.device) for op in OPS}
            progress(f"{name}, batch {batch}, {place}, memory")
            memory = {op: _memory(name, op, better[op], batch, place) for op in OPS}
        rows.append(
            {
                **{"model": name, "batch": batch, **place.about},
                "seconds": seconds,
                "format": better,
                **{f"{op}_ms": step[op] * 1e3 for op in sides},
                "ratio": step["adder"] / step["conv"],
                **({"tf32_ratio": step["tf32_adder"] / step["tf32"]} if "tf32" in sides else {}),
                "images_per_second": {op: batch / step[op] for op in sides},
                "memory_mib": memory,
                "profile": profiles,
                "memory_ratio": _ratio(memory["adder"]["step"], memory["conv"]["step"]),
            }
        )
    return rows


def profile(
    step: Callable[[], object], device: torch.device = CPU, steps: int = 3, least: float = 0.005
) -> dict[str, float]:
    """Milliseconds a step that operators spend in themselves, those above `least` of the whole, longest first.

    On a GPU those of its kernels, and of what it copies and clears.
    """
    gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as profiler:
        for _ in range(steps):
            step()
    times = (of_kernels if gpu else of_operators)(profiler.key_averages(), steps)
    whole = sum(times.values())
    longest = sorted(times, key=lambda key: -times[key])
    return {key: times[key] for key in longest if (gpu or "::" in key) and times[key] >= least * whole}


def of_operators(events: Iterable[Any], steps: int) -> dict[str, float]:
    """Milliseconds a step that each operator spends in itself on the processor."""
    return {event.key: event.self_cpu_time_total / 1e3 / steps for event in events}


def of_kernels(events: Iterable[Any], steps: int) -> dict[str, float]:
    """Milliseconds a step of each kernel on a GPU; what is annotated there spans kernels that count already."""
    kernels = (e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
    return {event.key: event.self_device_time_total / 1e3 / steps for event in kernels}


def _memory(name: str, op: str, layout: str, batch: int, place: Place) -> dict[str, float]:
    if isinstance(place, Cpu):
        return peak_memory(name, op, layout, batch, place.threads)
    return peak_of_allocator(partial(training_step, name, op, layout, batch, place.device), place.device)


def peak_of_allocator(make: Callable[[], Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Peak of what tensors and scratch take on a GPU while a step that `make` makes is run, MiB.

    "step": weights, activations, gradients, optimiser and scratch; not the trials of algorithms in the first step.
    """
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    step = make()
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return {"step": (torch.cuda.max_memory_allocated(device) - before) / 2**20}


def peak_memory(name: str, op: str, layout: str, batch: int, count: int) -> dict[str, float]:
    """Peak resident memory of fresh processes that train three steps, MiB.

    "step" is what such a process grows by from just before the model is made: weights, activations, gradients,
    optimiser and scratch, without interpreter and libraries. Blocks of 1 MiB and more go back to the system when they
    are freed, so that it is what the step needs. "malloc" is the same (median of three) with glibc's malloc left as
    it is, which keeps freed blocks and fragments; "total" is the whole process then.
    """
    needed = _in_process(name, op, layout, batch, count, True)
    usual = [_in_process(name, op, layout, batch, count, False) for _ in range(3)]
    step, total = (statistics.median(values) for values in zip(*usual, strict=True))
    return {"step": needed[0], "malloc": step, "total": total}


def _in_process(*arguments: Any) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(send, *arguments))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError as error:
        child.join()
        raise RuntimeError(f"the process that measures memory ended with code {child.exitcode}") from error
    finally:
        child.join()


def _ratio(adder: float, conv: float) -> float | None:
    # (A step so small that it fits into what the warm-up had left free: nothing to compare.)
    return adder / conv if conv else None


def _report_peak(send: Any, name: str, op: str, layout: str, batch: int, count: int, give_back: bool) -> None:
    if give_back:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    torch.set_num_threads(count)
    training_step(name, op, layout, 2)()  # libraries, thread pools and code are loaded before the count begins
    before = _peak_rss()
    step = training_step(name, op, layout, batch)
    for _ in range(3):
        step()
    send.send((_peak_rss() - before, _peak_rss()))


def _peak_rss() -> float:
    # (getrusage would not do: its maximum survives exec and begins with the parent's.)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")

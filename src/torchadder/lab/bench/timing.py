"""Timing that survives a noisy machine: candidates take turns, and the median of the turns is quoted.

A clock says how many seconds a call takes, over so many calls, and how long a turn should last at least.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Calls = dict[str, Callable[[], object]]


class Clock(Protocol):
    least: float

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Seconds a call of `function`, which is called so often."""


class HostClock:
    """The host's own, for what is done when the call returns."""

    def __init__(self, least: float = 0.01):
        self.least = least

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls


class DeviceClock:
    """A GPU's: an event of its current stream before each call, and one after it.

    With `flush`, so many bytes are overwritten before each call: no cache holds its tensors, and the host has made
    the call by the time that the GPU comes to it, so that the time of a short kernel is not that of its launch.
    """

    def __init__(self, device: torch.device, least: float, flush: int = 0):
        self.least = least
        self._device = device
        self._overwritten = torch.empty(flush, dtype=torch.int8, device=device)

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for before, after in pairs:
            if len(self._overwritten):
                self._overwritten.zero_()
            before.record()
            function()
            after.record()
        torch.cuda.synchronize(self._device)
        return sum(before.elapsed_time(after) for before, after in pairs) / 1e3 / calls  # events count milliseconds


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repetitions: int = 11, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds a call of each candidate, one number a repetition, by the host's clock if no other is given.

    Every repetition runs each candidate in turn, as often as fills about `clock.least` seconds, so that a slow moment
    of the machine meets all of them. Two calls and the count are made before, untimed.
    """
    clock = clock or HostClock()
    calls = {}
    for name, function in candidates.items():
        function()
        calls[name] = max(1, round(clock.least / max(clock.seconds(function, 1), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions):
            for name, function in candidates.items():
                seconds[name].append(clock.seconds(function, calls[name]))
    finally:
        gc.enable()
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate's repetitions."""
    return {name: statistics.median(values) for name, values in seconds.items()}


class threads:  # noqa: N801 - used as `with threads(n):`
    """torch.set_num_threads(count) for the length of a with block."""

    def __init__(self, count: int):
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)

"""Timing that survives a noisy machine: candidates take turns, and the median of the turns is quoted."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repetitions: int = 11, least: float = 0.01
) -> dict[str, list[float]]:
    """Seconds a call of each candidate, one number a repetition.

    Every repetition runs each candidate in turn, as often as fills about `least` seconds, so that a slow moment of
    the machine meets all of them. Two calls and the count are made before, untimed.
    """
    calls = {}
    for name, function in candidates.items():
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, round(least / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions):
            for name, function in candidates.items():
                start = time.perf_counter()
                for _ in range(calls[name]):
                    function()
                seconds[name].append((time.perf_counter() - start) / calls[name])
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

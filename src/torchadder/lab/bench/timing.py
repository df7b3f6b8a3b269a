"""Time candidates on the CPU or on a GPU: interleave their repetitions and quote the median.

    with device.settings():
        seconds = interleaved({"a": a, "b": b}, repetitions=11, clock=device.clock)

Repetitions are interleaved so that a slow moment of the machine affects every candidate; the median then ignores it.
"""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

from torchadder.environment import lacks_gpu
from torchadder.errors import UserError

Calls = dict[str, Callable[[], object]]


def _nothing() -> None:
    """Wait for nothing: a call on the CPU is finished when it returns."""


class Clock:
    """Measure calls; ``min_seconds`` is the least time that one repetition should last.

    ``finish`` waits until the work of all calls is done, on a GPU for example ``torch.cuda.synchronize``.
    """

    def __init__(self, min_seconds: float = 0.01, finish: Callable[[], None] = _nothing):
        self.min_seconds = min_seconds
        self._finish = finish

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Return the seconds for one call of ``function``, averaged over ``calls`` calls."""
        start = time.perf_counter()
        for _ in range(calls):
            function()
        self._finish()
        return (time.perf_counter() - start) / calls


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repetitions: int = 11, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Return the seconds for one call of each candidate, one number for each repetition.

    Each repetition runs all candidates in order, each as often as fills about ``clock.min_seconds``. Two calls of each
    run first and are not counted; the second one gives the number of calls. The default clock is the CPU's.
    """
    clock = clock or Clock()
    calls = {}
    for name, function in candidates.items():
        clock.seconds(function, 1)
        calls[name] = max(1, round(clock.min_seconds / max(clock.seconds(function, 1), 1e-7)))
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
    """Return the median of each candidate's repetitions."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def best_by_prefix(values: Mapping[str, float]) -> dict[str, float]:
    """Return the least value of each first word: {"adder contiguous": 4, "adder channels_last": 3} -> {"adder": 3}."""
    best: dict[str, float] = {}
    for name, value in values.items():
        prefix = name.partition(" ")[0]
        best[prefix] = min(value, best.get(prefix, value))
    return best


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use ``count`` threads of torch inside a with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cpu:
    """Use a number of threads of the CPU; ``fields`` names them in a row of a record."""

    device = torch.device("cpu")

    def __init__(self, count: int):
        self.threads = count
        self.fields: dict[str, Any] = {"threads": count}
        self.clock = Clock()

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def settings(self) -> AbstractContextManager[None]:
        """Return a context manager in which everything is measured."""
        return threads(self.threads)


class Gpu:
    """Use one GPU; ``fields`` names it in a row of a record.

    Convolutions compute in float32 without TF32. cuDNN takes the algorithm that it finds fastest.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.fields: dict[str, Any] = {"device": str(device)}
        self.clock = Clock(finish=partial(torch.cuda.synchronize, device))

    def __str__(self) -> str:
        return str(self.device)

    @contextmanager
    def settings(self) -> Iterator[None]:
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
        with torch.cuda.device(self.device), cudnn:
            yield


Device = Cpu | Gpu


def find_device(name: str) -> torch.device:
    """Return the device that "cpu", "cuda" or "cuda:N" names. Raises UserError if it does not exist here."""
    if name == "cpu":
        return torch.device(name)
    matched = re.fullmatch("cuda(?::([0-9]+))?", name)
    if matched is None:
        raise UserError(f"device={name} is unknown: choose cpu, cuda or cuda:N (GPU number N, counted from 0)")
    if reason := lacks_gpu():
        raise UserError(f"device={name} cannot be used: {reason}")
    index, count = int(matched[1] or 0), torch.cuda.device_count()
    if index >= count:
        present = "there is one GPU, cuda:0" if count == 1 else f"there are {count} GPUs, cuda:0 to cuda:{count - 1}"
        raise UserError(f"device={name} does not exist: {present}")
    return torch.device("cuda", index)

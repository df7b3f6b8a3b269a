"""Time candidates on the CPU or on a GPU: interleave their repetitions and quote the median.

    with device.settings():
        seconds = interleaved({"a": a, "b": b}, repetitions=11, clock=device.clock(flush=True))

Interleaving makes a slow moment of the machine meet every candidate; the median then ignores it.
"""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from torchadder.environment import lacks_gpu
from torchadder.errors import UserError

FLUSH = 512 * 2**20  # bytes: several times any L2 cache, and longer to overwrite than a call takes to launch

Calls = dict[str, Callable[[], object]]


class Clock(Protocol):
    """Measure calls; ``min_seconds`` is the least time that one repetition should last."""

    min_seconds: float

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Return the seconds for one call of ``function``, averaged over ``calls`` calls."""


class HostClock:
    """Measure work that is finished when the call returns, with the host's clock."""

    def __init__(self, min_seconds: float = 0.01):
        self.min_seconds = min_seconds

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls


class DeviceClock:
    """Measure work on a GPU, with an event of its current stream before and after each call.

    ``flush`` bytes are overwritten before each call. No cache then holds the tensors of the call, and the host has
    launched the call before the GPU reaches it, so that a short kernel's time is not its launch time.
    """

    def __init__(self, device: torch.device, min_seconds: float, flush: int = 0):
        self.min_seconds = min_seconds
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
    """Return the seconds for one call of each candidate, one number for each repetition.

    Each repetition runs all candidates in order, each as often as fills about ``clock.min_seconds``. Two calls of each
    run first and are not counted; the second one gives the number of calls. The default clock is the host's.
    """
    clock = clock or HostClock()
    calls = {}
    for name, function in candidates.items():
        function()
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

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def settings(self) -> AbstractContextManager[None]:
        """Return a context manager in which everything is measured."""
        return threads(self.threads)

    def clock(self, flush: bool) -> Clock:
        """Return the clock for single operators (``flush``) or for whole steps."""
        return HostClock()

    def tf32_variants(self, calls: Calls) -> Calls:
        """Return further candidates made of ``calls``; a CPU has none."""
        return {}

    def largest_batch(self, batch: int, bytes_per_image: int) -> int:
        """Return ``batch``, or fewer images if the memory holds fewer."""
        return batch


class Gpu:
    """Use one GPU; ``fields`` names it in a row of a record.

    float32 is computed in float32, except in the candidates that `tf32_variants` adds. cuDNN takes the algorithm that
    it finds fastest.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.fields: dict[str, Any] = {"device": str(device)}

    def __str__(self) -> str:
        return str(self.device)

    @contextmanager
    def settings(self) -> Iterator[None]:
        with torch.cuda.device(self.device), _cudnn(tf32=False):
            yield

    def clock(self, flush: bool) -> Clock:
        return DeviceClock(self.device, 0.002, FLUSH) if flush else DeviceClock(self.device, 0.1)

    def tf32_variants(self, calls: Calls) -> Calls:
        """Return ``calls`` with TF32 allowed in cuDNN (10 bits of mantissa instead of 23).

        "conv ..." becomes "tf32 ...", "adder ..." becomes "tf32_adder ...": an adder layer's weight gradient is a
        convolution's, and an AdderNet's first and last layers are convolutions.
        """
        prefixes = {"conv": "tf32", "adder": "tf32_adder"}
        return {
            f"{prefixes[op]} {rest}": partial(_with_tf32, call)
            for (op, _, rest), call in ((name.partition(" "), call) for name, call in calls.items())
        }

    def largest_batch(self, batch: int, bytes_per_image: int) -> int:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(batch, free // bytes_per_image))


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


def _cudnn(tf32: bool) -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32)


def _with_tf32(call: Callable[[], object]) -> object:
    with _cudnn(tf32=True):
        return call()

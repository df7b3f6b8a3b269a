"""What a benchmark runs on, processor cores or a GPU: its settings, its clock, and the rivals that only it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import torch

from torchadder.environment import lacks_gpu
from torchadder.errors import UserError

from .timing import Calls, Clock, DeviceClock, HostClock, threads

FLUSH = 512 * 2**20  # bytes: several times any second-level cache, and longer to write than a call to make


class Cpu:
    """So many threads of the processor."""

    device = torch.device("cpu")

    def __init__(self, count: int):
        self.threads = count
        self.about: dict[str, Any] = {"threads": count}

    def __str__(self) -> str:
        return f"{self.threads} threads"

    def in_use(self) -> AbstractContextManager[None]:
        """The setting in which all is measured."""
        return threads(self.threads)

    def clock(self, flush: bool) -> Clock:
        """The clock of a whole step, or with `flush` of a single operator."""
        return HostClock()

    def rivals(self, calls: Calls) -> Calls:
        """More candidates, made of these."""
        return {}

    def most(self, batch: int, bytes_an_image: int) -> int:
        """`batch`, or as many images as the memory holds."""
        return batch


class Gpu:
    """One GPU; float32 is float32, unless a rival says "tf32", and cuDNN takes the algorithm that it finds quickest."""

    def __init__(self, device: torch.device):
        self.device = device
        self.about: dict[str, Any] = {"device": str(device)}

    def __str__(self) -> str:
        return str(self.device)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        with torch.cuda.device(self.device), _cudnn(tf32=False):
            yield

    def clock(self, flush: bool) -> Clock:
        return DeviceClock(self.device, 0.002, FLUSH) if flush else DeviceClock(self.device, 0.1)

    def rivals(self, calls: Calls) -> Calls:
        """The same where cuDNN may use TF32, which leaves factors 10 bits behind the point of 23.

        "conv ..." becomes "tf32 ...". "adder ..." becomes "tf32_adder ...": its weight gradient is a convolution's, and
        an AdderNet's first and last layers are convolutions.
        """
        sides = {"conv": "tf32", "adder": "tf32_adder"}
        return {
            f"{sides[side]} {rest}": partial(_with_tf32, call)
            for (side, _, rest), call in ((name.partition(" "), call) for name, call in calls.items())
        }

    def most(self, batch: int, bytes_an_image: int) -> int:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(batch, free // bytes_an_image))

    @cached_property
    def limit(self) -> float | None:
        """None: the instruction rate of a GPU is not measured here."""
        return None


Place = Cpu | Gpu


def find(name: str) -> torch.device:
    """The device that "cpu", "cuda" or "cuda:N" names. Raises UserError where it is not here."""
    if name == "cpu":
        return torch.device(name)
    matched = re.fullmatch("cuda(?::([0-9]+))?", name)
    if matched is None:
        raise UserError(f"--device {name}: choose of cpu, cuda, cuda:N (the GPU of number N, from 0)")
    if reason := lacks_gpu():
        raise UserError(f"--device {name}: {reason}")
    index, count = int(matched[1] or 0), torch.cuda.device_count()
    if index >= count:
        there = "there is one GPU, cuda:0" if count == 1 else f"there are {count} GPUs, cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device {name}: {there}")
    return torch.device("cuda", index)


def _cudnn(tf32: bool) -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32)


def _with_tf32(call: Callable[[], object]) -> object:
    with _cudnn(tf32=True):
        return call()

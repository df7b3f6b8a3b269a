"""kernels/ at run time: compiled by NVRTC through cuda.core on first use, kept on disk, launched on torch's stream."""

from __future__ import annotations

import statistics
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

AHEAD = 2_000_000  # clocks, a millisecond: by then the host has made all launches that are timed
SOURCES = ("numbers", "convolution", "tile", "operators", "kernels")


class Kernel(NamedTuple):
    """An instance of a template of kernels/: the macro that names it, and what fills the template.

    A multiprocessor must have registers for `resident` blocks of `threads`.
    """

    macro: str
    threads: int
    resident: int
    function: str
    arguments: tuple[object, ...]
    activation: str

    @property
    def name(self) -> str:
        """What a profiler shows, such as torchadder_forward_tile_float_128_128_8_8_1_1_0_1."""
        return "_".join(["torchadder", self.function, *(str(int(a) if type(a) is bool else a) for a in self.arguments)])

    def instance(self, name: str) -> str:
        """The line of CUDA C++ that makes it a kernel of that name."""
        arguments = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in self.arguments)
        function = f"{self.function}<{arguments}>" if arguments else self.function
        return f"{self.macro}({name}, {self.threads}, {self.resident}, ({function}), {self.activation})"


class Call(NamedTuple):
    """A kernel, its blocks (x, y), and all of its arguments but the tensors."""

    kernel: Kernel
    blocks: tuple[int, int]
    numbers: tuple[Any, ...]


@cache
def source() -> str:
    """The files of kernels/, one after the other."""
    folder = Path(__file__).with_name("kernels")
    return "\n".join((folder / f"{name}.cuh").read_text() for name in SOURCES)


def compile(kernel: Kernel, architecture: str) -> Any:
    """The cuda.core.ObjectCode of a kernel, for an architecture such as "sm_90". Needs no GPU."""
    from cuda.core import Program, ProgramOptions

    text = f"{source()}\n{kernel.instance(kernel.name)}\n"
    program = Program(text, "c++", ProgramOptions(arch=architecture, std="c++17"))
    try:
        from cuda.core.utils import FileStreamProgramCache
    except ImportError:  # an older cuda.core
        return program.compile("cubin")
    with FileStreamProgramCache() as kept:
        return program.compile("cubin", cache=kept)


def launch(call: Call, tensors: tuple[Tensor | None, ...]) -> None:
    """Run it on torch's current stream of the tensors' device; `tensors` come first among its arguments."""
    from cuda.core import launch as start

    device = tensors[0].device  # type: ignore[union-attr]
    with torch.cuda.device(device):
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        kernel = _loaded(call.kernel, device.index)
        start(stream_of(device), _configuration(call.blocks, call.kernel.threads), kernel, *pointers, *call.numbers)


def seconds(call: Call, tensors: tuple[Tensor | None, ...], repetitions: int) -> list[float]:
    """Of so many launches, one after the other on the current GPU, after one that is not counted."""
    launch(call, tensors)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    torch.cuda._sleep(AHEAD)
    events[0].record()
    for event in events[1:]:
        launch(call, tensors)
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]  # events count milliseconds


def stream_of(device: torch.device) -> Any:
    """torch's current stream of a GPU, for cuda.core; its context becomes the thread's, since autograd's have none."""
    from cuda.core import Device

    Device(device.index).set_current()
    return _stream(device.index, torch.cuda.current_stream(device).cuda_stream)


@cache
def issue_limit(device: torch.device) -> float:
    """Element operations a second, two FADD each, of a kernel that does nothing else: what bounds every other."""
    index = torch.cuda.current_device() if device.index is None else device.index
    rounds = 4096
    with torch.cuda.device(index):
        blocks = 16 * multiprocessors()
        call = Call(Kernel("ISSUE", 256, 2, "issue", (), "float"), (blocks, 1), (np.int32(rounds),))
        out = torch.rand(blocks * 256, device="cuda")
        return out.numel() * rounds * 256 / 2 / statistics.median(seconds(call, (out,), repetitions=7))


@cache
def multiprocessors() -> int:
    """Of torch's current GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@cache
def _loaded(kernel: Kernel, device: int) -> Any:
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    try:
        return compile(kernel, architecture).get_kernel(kernel.name)
    except Exception as error:  # of NVRTC, the driver, or a library that is not found: no class in common
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "no kernel can be loaded while a CUDA graph is captured: run the layer once before it"
            ) from error
        raise RuntimeError(
            f"GPU kernels do not compile or load for {architecture} ({error}): set TORCHADDER_GPU=triton, and report it"
        ) from error


@cache
def _configuration(blocks: tuple[int, int], threads: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=(*blocks, 1), block=threads)


class _Foreign(NamedTuple):
    """A stream of torch's, by the protocol of cuda.core."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@cache
def _stream(device: int, handle: int) -> Any:
    from cuda.core import Device

    return Device(device).create_stream(_Foreign(handle))

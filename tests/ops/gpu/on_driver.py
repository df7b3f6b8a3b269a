"""The GPU kernels launched as on a GPU, by cuda.core to a stand-in for the driver; a process of its own, since a driver
stays loaded: python -m tests.ops.gpu.on_driver FOLDER, an empty one.
"""

import contextlib
import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tests.ops.gpu.on_cpu import COMPILER, MULTIPROCESSORS, Machine
from tests.ops.test_conv import assert_equal, exact

from torchadder.analysis.bruteforce import Case
from torchadder.ops.gpu import cuda, nvrtc

CASE = Case(3, 8, 12, size=(9, 7), kernel=(3, 2), stride=(2, 1), padding=(1, 1), groups=2)


class OnGpu(NamedTuple):
    """A tensor, as if a GPU held it."""

    tensor: torch.Tensor
    device = torch.device("cuda", 0)

    def data_ptr(self):
        return self.tensor.data_ptr()


def driver(folder):
    """The stand-in, loaded: whoever asks for libcuda.so.1 gets this one."""
    path = folder / "libcuda.so.1"
    source = Path(__file__).with_name("driver.cpp")
    options = ("-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{path.name}")
    subprocess.run([COMPILER, *options, "-o", path, source], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.stand_in_stream.restype = ctypes.c_void_p
    return loaded


def main(folder):
    stand_in, machine, launched = driver(folder), Machine(folder), nvrtc.launch
    stream = SimpleNamespace(cuda_stream=0)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.get_device_capability = lambda device: (9, 0)
    torch.cuda.current_stream = lambda device: stream
    nvrtc.multiprocessors = lambda: MULTIPROCESSORS

    def launch(call, tensors):
        stand_in.stand_in_run(machine.function(call.kernel))
        launched(call, tuple(None if t is None else OnGpu(t) for t in tensors))

    nvrtc.launch = launch
    x, weight, grad, truth = exact(CASE)

    def check():
        y = cuda.forward(x, weight, None, CASE.geometry, torch.channels_last)
        assert_equal(y, truth.output)
        dx = cuda.grad_input(grad, x, weight, CASE.geometry, "hardtanh", torch.contiguous_format)
        assert_equal(dx, truth.grad_input)
        dw = cuda.grad_weight_sign(grad, x, weight, CASE.geometry, torch.contiguous_format)
        assert_equal(dw, truth.grad_weight_sign)
        assert (stand_in.stand_in_stream() or 0) == stream.cuda_stream

    check()
    stream.cuda_stream = 0x5555
    check()
    with ThreadPoolExecutor(1) as thread:  # as autograd's: no context is current there
        thread.submit(check).result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

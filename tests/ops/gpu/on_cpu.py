"""The CUDA C++ kernels compiled for the CPU: what cuda.core does on a GPU, for tests without one."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from torchadder.ops.gpu import nvrtc

COMPILER = shutil.which("c++") or shutil.which("g++")
MULTIPROCESSORS = 3


class Machine:
    """Compiles kernels as they are asked for, into `folder`, and runs them on CPU tensors."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._kernels = {}
        self.backwards = False
        self.launched = []

    def launch(self, call, tensors):
        """nvrtc.launch."""
        self.launched.append(call.kernel)
        numbers = [(ctypes.c_int64 if isinstance(n, np.int64) else ctypes.c_int32)(int(n)) for n in call.numbers]
        pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
        values = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in (*pointers, *numbers)]
        run = self.function(call.kernel)
        run(*call.blocks, call.kernel.threads, self.backwards, (ctypes.c_void_p * len(values))(*values))

    def function(self, kernel):
        """The C function that runs it."""
        if kernel not in self._kernels:
            self.compile([kernel])
        return self._kernels[kernel]

    def compile(self, kernels):
        """One library with these kernels."""
        lines = ['#include "on_cpu.h"', nvrtc.source()]
        for i, kernel in enumerate(kernels):
            lines.append(kernel.instance(f"kernel{i}"))
            lines.append(f'extern "C" void run{i}(unsigned x, unsigned y, unsigned threads, bool backwards, void** a)')
            lines.append(f"{{ on_cpu::launch(kernel{i}, x, y, threads, backwards, a); }}")
        name = self._folder / f"kernels{len(self._kernels)}"
        name.with_suffix(".cpp").write_text("\n".join(lines))
        options = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-I", Path(__file__).parent)
        subprocess.run([COMPILER, *options, "-o", name.with_suffix(".so"), name.with_suffix(".cpp")], check=True)
        library = ctypes.CDLL(str(name.with_suffix(".so")))
        self._kernels |= {kernel: library[f"run{i}"] for i, kernel in enumerate(kernels)}

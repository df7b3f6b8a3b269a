"""Compile the Triton kernels for an NVIDIA GPU that is not here, and count the instructions of their inner loops.

A multiprocessor issues the instructions of four warps a clock, and an element of an adder convolution takes two of
them: everything else that the loop issues makes the kernel slower. The disassembler comes with Triton.
"""

import re
import subprocess
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ARITHMETIC = ("FADD", "FFMA")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w+)(.*)")
WARP = 32


def hottest_loop(cubin, kernel):
    """Return a Counter of the instructions, without suffixes, of the innermost loop with the most arithmetic.

    ``kernel`` is a part of the symbol's name that no other symbol has.
    """
    tool = Path(_triton_folder()) / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        code = subprocess.run([tool, "-c", path], check=True, capture_output=True, text=True).stdout
    sections = dict(re.findall(r"\.section\s+\.text\.([^,\s]+)(.*?)(?=\.section\s|\Z)", code, re.DOTALL))
    (name,) = [name for name in sections if kernel in name]
    loops = [Counter(loop) for loop in innermost_loops(sections[name])]
    return max(loops, key=lambda counts: sum(counts[name] for name in ARITHMETIC))


def innermost_loops(code):
    """Return the instructions of each loop that encloses no other, or of the whole code if nothing loops."""
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.search(line):
            instructions.append(found.groups())
    ranges = {}  # by first instruction: several branches may lead back to it
    for at, (name, rest) in enumerate(instructions):
        target = re.search(r"`\((\.L_\w+)\)", rest)
        if name == "BRA" and target and labels[target[1]] < at:
            ranges[labels[target[1]]] = at + 1
    names = [name for name, _ in instructions]
    inner = [
        names[first:end]
        for first, end in ranges.items()
        if not any((first, end) != (f, e) and first <= f and e <= end for f, e in ranges.items())
    ]
    return inner or [names]


def _triton_folder():
    import triton

    return Path(triton.__file__).parent


class NoGpu:
    """Replace the driver: name a compute capability, 90 for 9.0, and run nothing."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, WARP)


class Compiled:
    """Replace a kernel: compile each launch and keep the result as ``result``."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.result = None

    def __getitem__(self, grid):
        def compile(*arguments, **options):
            self.result = self.kernel.warmup(*arguments, **options, grid=(1,))

        return compile


@contextmanager
def compiling(capability):
    """Compile what the Triton route would launch on tensors of the device "meta"; yield the kernels by name."""
    from torchadder.ops import triton as route
    from torchadder.ops import triton_kernels

    names = ("forward", "grad_input", "grad_weight_sign")
    kernels = {name: Compiled(getattr(triton_kernels, name)) for name in names}
    driver = SimpleNamespace(active=NoGpu(capability))
    with (
        mock.patch.object(route, "kernels", return_value=SimpleNamespace(**kernels)),
        mock.patch("triton.runtime.jit.driver", driver),
    ):
        yield kernels

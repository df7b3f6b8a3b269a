"""Count the instructions of the GPU kernels' innermost loops; no GPU needed: python benchmarks/gpu_instructions.py.

A multiprocessor issues four warps' instructions a clock, and an element of an adder convolution takes two: the share of
those two among all that the loop issues bounds the share of the issue limit that the kernel can reach. It
gets there only if arithmetic hides the latency of global memory: what stands between a load and its use is counted too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from torchadder.errors import UserError
from torchadder.lab import record
from torchadder.ops.geometry import Geometry

ARITHMETIC = ("FADD", "FFMA", "FMNMX", "VABSDIFF4")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w+)(.*)")
LAYERS = {  # n, channels, filters, size, kernel, stride, groups
    "ResNet-18 3x3": (128, 128, 128, 28, 3, 1, 1),
    "ResNet-18 3x3, stride 2": (128, 128, 256, 28, 3, 2, 1),
    "ResNet-50 1x1": (128, 256, 64, 56, 1, 1, 1),
    "ResNet-20 3x3": (256, 16, 16, 32, 3, 1, 1),
}
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
WARP, MULTIPROCESSORS = 32, 132
DEPTH = 8  # elements of K that a round of the CUDA C++ kernels' loop takes
Body = list[tuple[str, str]]  # an instruction's name without suffixes, and the rest: its suffixes and operands


class Layer(NamedTuple):
    """Tensors of a convolution, on no device, in a memory format."""

    x: torch.Tensor
    weight: torch.Tensor
    grad: torch.Tensor
    geometry: Geometry
    layout: torch.memory_format


class Loop(NamedTuple):
    """Instructions of a loop's body by name, without suffixes; `registers` of a thread and `stack` bytes it spills.

    `hidden_by`: arithmetic between each global load and its use, at least.
    """

    counts: Counter[str]
    registers: int
    stack: int
    hidden_by: int

    @property
    def all(self) -> int:
        return self.counts.total()

    @property
    def arithmetic(self) -> int:
        return sum(self.counts[name] for name in ARITHMETIC)


def hottest_loop(cubin: bytes, kernel: str) -> Loop:
    """The innermost loop with the most arithmetic, or the whole kernel where nothing loops.

    `kernel` is a part of the symbol's name that no other symbol has. Raises UserError for one that is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        name, code = _section(_printed("nvdisasm", "-c", str(path)), kernel)
        usage = _printed("cuobjdump", "-res-usage", str(path))
    registers, stack = re.search(rf"Function {re.escape(name)}:\s*REG:(\d+) STACK:(\d+)", usage).groups()
    body = max(innermost_loops(code), key=_arithmetic)
    return Loop(Counter(name for name, _ in body), int(registers), int(stack), hidden_by(body))


def innermost_loops(code: str) -> list[Body]:
    """Bodies of the loops that enclose no other, or all of the code where nothing loops."""
    instructions: Body = []
    labels = {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.search(line):
            instructions.append((found[1], found[2]))
    ranges = {}  # by first instruction: several branches may lead back to it
    for at, (instruction, rest) in enumerate(instructions):
        target = re.search(r"`\((\.L_\w+)\)", rest)
        if instruction == "BRA" and target and labels[target[1]] < at:
            ranges[labels[target[1]]] = at + 1
    bodies = [
        instructions[slice(*loop)] for loop in ranges.items() if not any(_encloses(loop, o) for o in ranges.items())
    ]
    return bodies or [instructions]


def hidden_by(body: Body) -> int:
    """The least arithmetic that stands between a global load and the first instruction that reads what it brings.

    A round is followed to its end, in the order of the code. Nothing waits for asynchronous copies: where there are no
    other loads, it is all of the arithmetic.
    """
    loads = (at for at, (name, _) in enumerate(body) if name == "LDG")
    return min((_until_read(body[at][1], body[at + 1 :]) for at in loads), default=_arithmetic(body))


def _until_read(load: str, after: Body) -> int:
    suffixes, _, operands = load.partition(" ")
    brought = _registers(operands.partition(",")[0], _width(suffixes))
    return _arithmetic(takewhile(lambda instruction: not brought & _read(*instruction), after))


def _read(name: str, rest: str) -> set[int]:
    """The registers that an instruction reads: all but the first operand, which only stores and barriers read."""
    suffixes, _, operands = rest.partition(" ")
    sources = operands if name.startswith(("ST", "BAR")) else operands.partition(",")[2]
    others, _, last = sources.rpartition(",")  # data or an addend, as wide as the suffixes say; or an address
    return _registers(others, 1) | _registers(last, 1 if "[" in last else _width(suffixes))


def _registers(operands: str, width: int) -> set[int]:
    found = re.findall(r"\bR(\d+)(\.64)?", operands)
    return {int(first) + i for first, pair in found for i in range(2 if pair else width)}


def _width(suffixes: str) -> int:
    return 4 if ".128" in suffixes else 2 if ".64" in suffixes or ".WIDE" in suffixes else 1


def _arithmetic(body: Iterable[tuple[str, str]]) -> int:
    return sum(name in ARITHMETIC for name, _ in body)


def _encloses(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop != other and loop[0] <= other[0] and other[1] <= loop[1]


def _section(code: str, kernel: str) -> tuple[str, str]:
    sections = dict(re.findall(r"\.section\s+\.text\.([^,\s]+)(.*?)(?=\.section\s|\Z)", code, re.DOTALL))
    names = [kernel] if kernel in sections else [name for name in sections if kernel in name]
    if len(names) != 1:
        raise UserError(f"{len(names)} kernels are called {kernel!r}: choose one of {', '.join(sections) or 'none'}")
    return names[0], sections[names[0]]


def _printed(tool: str, *words: str) -> str:
    """What one of NVIDIA's tools prints, which Triton brings along."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, *words], check=True, capture_output=True, text=True).stdout


class NoGpu:
    """A driver that knows what to compile for, and cannot run it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, WARP)


class Compiled:
    """In a kernel's place: compiles what would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launched: tuple[dict[str, Any], Any] | None = None

    def __getitem__(self, grid: Any) -> Any:
        def compile(*arguments: Any, **options: Any) -> None:
            self.launched = options, self.kernel.warmup(*arguments, **options, grid=(1,))

        return compile


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Compiled]]:
    """The Triton route on tensors of the device "meta": what it would launch is compiled, and kept here by name."""
    from torchadder.ops.gpu import triton as route
    from torchadder.ops.gpu import triton_kernels

    names = ("forward", "grad_input", "grad_weight_sign")
    kernels = {name: Compiled(getattr(triton_kernels, name)) for name in names}
    driver = SimpleNamespace(active=NoGpu(capability))
    with (
        mock.patch.object(route, "kernels", SimpleNamespace(**kernels)),
        mock.patch("triton.runtime.jit.driver", driver),
    ):
        yield kernels


def of_triton(capability: int, layer: Layer) -> Iterator[dict[str, Any]]:
    from torchadder.ops.gpu import triton as route

    with compiling(capability) as kernels:
        route.forward(layer.x, layer.weight, None, layer.geometry, layer.layout)
        route.grad_input(layer.grad, layer.x, layer.weight, layer.geometry, "hardtanh", layer.layout)
    for operator in ("forward", "grad_input"):
        options, compiled = kernels[operator].launched  # type: ignore[misc]
        tile = (options["PIXELS"], options["COLUMNS"], options["UNROLL"], options["num_warps"])
        yield {"operator": operator, **_counted(*tile, hottest_loop(compiled.asm["cubin"], operator))}


def of_cuda(capability: int, layer: Layer) -> Iterator[dict[str, Any]]:
    from torchadder.ops.gpu import cuda, nvrtc

    launched: list[nvrtc.Call] = []
    with (
        mock.patch.object(nvrtc, "launch", lambda call, tensors: launched.append(call)),
        mock.patch.object(nvrtc, "multiprocessors", return_value=MULTIPROCESSORS),
    ):
        cuda.forward(layer.x, layer.weight, None, layer.geometry, layer.layout)
        cuda.grad_input(layer.grad, layer.x, layer.weight, layer.geometry, "hardtanh", layer.layout)
    for operator, call in zip(("forward", "grad_input"), launched, strict=True):
        pixels, columns = (n for n in call.kernel.arguments if type(n) is int and n > 8)
        loop = hottest_loop(bytes(nvrtc.compile(call.kernel, f"sm_{capability}").code), call.kernel.name)
        yield {"operator": operator, **_counted(pixels, columns, DEPTH, call.kernel.threads // WARP, loop)}


def layer_of(name: str, images: str, dtype: torch.dtype) -> Layer:
    """One of LAYERS in one of FORMATS."""
    n, channels, filters, size, kernel, stride, groups = LAYERS[name]
    geometry, layout = Geometry((stride,) * 2, (kernel // 2,) * 2, (1, 1), groups), FORMATS[images]
    x = torch.empty(n, channels, size, size, device="meta", dtype=dtype)
    weight = torch.empty(filters, channels // groups, kernel, kernel, device="meta")
    grad = torch.empty(geometry.output_shape(x, weight), device="meta", dtype=dtype)
    return Layer(*(t.to(memory_format=layout) for t in (x, weight, grad)), geometry, layout)


def rows(capability: int) -> Iterator[dict[str, Any]]:
    """A row for each route, operator, layer, memory format and dtype: the tile that would be launched untuned."""
    for name in LAYERS:
        for images in FORMATS:
            for dtype in (torch.float32, torch.bfloat16):
                layer = layer_of(name, images, dtype)
                about = {"layer": name, "format": images, "dtype": str(dtype).split(".")[1]}
                for route, counted in (("cuda", of_cuda), ("triton", of_triton)):
                    yield from ({"route": route, **about, **row} for row in counted(capability, layer))


def _counted(pixels: int, columns: int, depth: int, warps: int, loop: Loop) -> dict[str, Any]:
    elements = pixels * columns * depth // (warps * WARP)
    return {
        **{"tile": f"{pixels}x{columns}x{depth}", "warps": warps, "registers": loop.registers, "stack": loop.stack},
        **{"elements": elements, "arithmetic": loop.arithmetic, "instructions": loop.all},
        **{"barriers": loop.counts["BAR"], "shared_loads": loop.counts["LDS"] + loop.counts["LDSM"]},
        **{
            "global_loads": loop.counts["LDG"] + loop.counts["LDGSTS"],
            "spills": loop.counts["LDL"] + loop.counts["STL"],
        },
        "hidden_by": loop.hidden_by,
        "share": 2 * elements / loop.all,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of the GPU kernels' innermost loops.")
    parser.add_argument("-o", "--output", type=Path, help="e.g. results/gpu-instructions.json")
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 90 for 9.0")
    options = parser.parse_args()
    found = []
    for row in rows(options.capability):
        if not found:
            print(*row, sep="\t")
        found.append(row)
        print(*(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()), sep="\t", flush=True)
    if options.output:
        about = {"capability": options.capability, "triton": version("triton"), "nvrtc": version("nvidia-cuda-nvrtc")}
        record.write(options.output, record.make("gpu-instructions", 1, found, **about))
    return 0


if __name__ == "__main__":
    sys.exit(main())

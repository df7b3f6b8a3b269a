"""Model the inner loops of the NEON kernels: compile them, take each from the object file, and give it to llvm-mca.

    python benchmarks/neon_model.py        # writes results/neon-model.json; needs aarch64-linux-gnu-g++ and llvm-mca-19

The model knows the pipes and latencies of a core. It knows no caches and no wait for memory.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from llvm_mca import MODEL, cycles, run
from torchadder.lab import record

ROOT = Path(__file__).resolve().parent.parent
COMPILER, OBJDUMP = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump"
CORES = {"cortex-a53": ("neon",), "cortex-a72": ("neon",), "neoverse-n1": ("neon", "neondot")}
FLAGS = ("-O3", "-mtune=cortex-a53", "-fno-tree-pre")  # those of the engine's kernels


class Loop(NamedTuple):
    """Name the inner loop of a kernel: the one in the object file with ``count`` instructions ``instruction``."""

    kernel: str
    source: str
    instruction: str
    count: int
    elements: int  # of one iteration


LOOPS = [
    Loop("adder_u8_neon_4x8", "engine/kernels_neon.cpp", "uabd", 16, 256),
    Loop("conv_u8_neon_3x8", "engine/kernels_neon.cpp", "smull", 6, 192),
    Loop("int8 as in XNNPACK, mlal_2x8c8", "neon_int8.cpp", "smull", 16, 256),
    Loop("adder_u8_neondot_4x8", "engine/kernels_neondot.cpp", "uabd", 16, 256),
    Loop("conv_u8_neondot_4x8", "engine/kernels_neondot.cpp", "sdot", 16, 256),
    Loop("forward_f32_neon_8x8_any", "conv/kernels_neon.cpp", "fabd", 16, 64),
    Loop("grad_input_f32_neon_4x8_any", "conv/kernels_neon.cpp", "fmla", 8, 32),
]


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as build:
        run("cmake", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}")  # fmt: skip
        run("cmake", "--build", build)
        objects = Path(build) / "CMakeFiles" / "torchadder.dir" / "native"
        rival = objects / "neon_int8.cpp.o"
        run(COMPILER, *FLAGS, "-c", ROOT / "benchmarks" / "neon_int8.cpp", "-o", rival)
        for loop in LOOPS:
            compiled = objects / f"{loop.source}.o"
            code = inner_loop(run(OBJDUMP, "-d", "--no-show-raw-insn", compiled), loop)
            for core, sets in CORES.items():
                if compiled == rival or any(f"_{name}_" in loop.kernel for name in sets):
                    count = {"instructions": len(code), "cycles": cycles(repeated(code), "aarch64", core)}
                    rows.append({"core": core, **loop._asdict(), **count})
                    print(core, loop.kernel, count["cycles"])
    versions = {tool: run(tool, "--version").splitlines()[0].strip() for tool in (COMPILER, MODEL)}
    record.write(ROOT / "results" / "neon-model.json", record.make("neon-model", 1, rows, versions=versions))
    return 0


def inner_loop(listing: str, loop: Loop) -> list[str]:
    """Return the instructions of the shortest loop that has as many of one instruction as the kernel's inner loop."""
    found: list[list[str]] = []
    for function in re.split(r"^[0-9a-f]+ <.*>:$", listing, flags=re.MULTILINE)[1:]:
        lines = re.findall(r"^\s+([0-9a-f]+):\s+([^<\n]*?)\s*(?:<.*|//.*)?$", function, re.MULTILINE)
        for address, text in lines:
            target = re.match(r"(?:b\.\w+|cbn?z|tbn?z)\s.*?([0-9a-f]+)$", text)
            if target and int(target[1], 16) <= int(address, 16):
                body = [t for a, t in lines if int(target[1], 16) <= int(a, 16) <= int(address, 16)]
                if sum(t.split()[0] == loop.instruction for t in body) == loop.count:
                    found.append(body)
    return min(found, key=len)


def repeated(code: list[str]) -> str:
    """Return a loop for llvm-mca, in which a branch leads nowhere else."""
    return "\n".join(re.sub(r"^(b\.\w+|cbn?z|tbn?z)\s.*", "b.ne .", line) for line in code)


if __name__ == "__main__":
    sys.exit(main())

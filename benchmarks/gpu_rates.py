"""Rates of inner loops on a GPU: a kernel that does nothing else, timed by events; beside it, what it compiles to.

    python benchmarks/gpu_rates.py                  # on a machine with an NVIDIA GPU: results/gpu-rates.json
    python benchmarks/gpu_rates.py --compile sm_90  # anywhere: only that every loop compiles

`fadd` is the forward pass's (two FADD an element), `fadd_sat` dX's (FADD.SAT, FFMA), `fmnmx` the other way to
|x - w| (max beside FADD: another pipe, as many instructions), `vabsdiff4` four bytes' |x - w|, summed, in one; `dp4a`
is an int8 convolution's, `ffma` a float32 convolution's. One thread block of 256 has 64 sums a thread.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchadder.lab.bench import record
from torchadder.lab.bench.timing import DeviceClock
from torchadder.ops.gpu import nvrtc

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, REPETITIONS, THREADS, SUMS = 4096, 7, 256, 64
LOOPS = {  # type, one step of a sum s with x and w, elements; every step waits for its sum's last, none can be left out
    "ffma": ("float", "s = fmaf(x, w, s);", 1),
    "fadd": ("float", "s = fabsf(s - x) + w;", 1),
    "fadd_sat": ("float", "s = fmaf(__saturatef(s + w), x, s);", 1),
    "fmnmx": ("float", "s = fmaxf(s, x) + w;", 1),
    "vabsdiff4": ("unsigned", 'asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %0;" : "+r"(s) : "r"(x), "r"(w));', 4),
    "dp4a": ("unsigned", "s = __dp4a(x, w, s);", 4),
}
SOURCE = """
extern "C" __global__ void __launch_bounds__(256, 2) loop(TYPE* out, int rounds) {
    TYPE xs[8], ws[8], sums[64];
    for (int i = 0; i < 8; ++i) xs[i] = out[i], ws[i] = out[i + 8];
    for (int i = 0; i < 64; ++i) sums[i] = out[i];
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            TYPE &s = sums[i], x = xs[i % 8], w = ws[i / 8];
            STEP
        }
    TYPE all = 0;
    for (int i = 0; i < 64; ++i) all += sums[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = all;
}
"""


def compiled(kind: str, step: str, architecture: str) -> Any:
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=architecture, std="c++17")
    return Program(SOURCE.replace("TYPE", kind).replace("STEP", step), "c++", options).compile("cubin")


def measure(name: str) -> dict[str, Any]:
    """Element operations a second of the whole GPU, in units of 1e9."""
    from cuda.core import LaunchConfig, launch

    kind, step, elements = LOOPS[name]
    major, minor = torch.cuda.get_device_capability()
    blocks = 16 * nvrtc.multiprocessors()
    kernel = compiled(kind, step, f"sm_{major}{minor}").get_kernel("loop")
    stream = nvrtc.stream_of(torch.device("cuda", 0))
    out = torch.randint(1, 100, (blocks * THREADS,), dtype=torch.int32, device="cuda")
    out = out.float() if kind == "float" else out
    arguments = (LaunchConfig(grid=blocks, block=THREADS), kernel, out.data_ptr(), np.int32(ROUNDS))
    clock = DeviceClock(out.device, least=0)
    times = [clock.seconds(partial(launch, stream, *arguments), 1) for _ in range(REPETITIONS + 1)]
    operations = blocks * THREADS * SUMS * ROUNDS * elements
    return {"loop": name, "seconds": times[1:], "giga_ops": operations / statistics.median(times[1:]) / 1e9}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--compile", metavar="ARCHITECTURE", help="only compile, for such as sm_90; needs no GPU")
    architecture = parser.parse_args().compile
    if architecture:
        for name, (kind, step, _) in LOOPS.items():
            print(f"{name:10} {len(compiled(kind, step, architecture).code)} bytes")
        return 0
    torch.cuda.init()
    measure("ffma")  # the clock rises to what it stays at
    rows = [measure(name) for name in LOOPS]
    made = record.make("gpu-rates", REPETITIONS, rows, torch.device("cuda", 0))
    record.write(ROOT / "results" / "gpu-rates.json", made)
    for row in rows:
        print(f"{row['loop']:10} {row['giga_ops']:9.0f} G/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Check and count exported C: equal results on MNIST, sizes, and the inner loops on the cores of microcontrollers.

    python benchmarks/microcontrollers.py FILE.tadder...     # writes results/microcontrollers.json

FILE.tadder: programs for MNIST, as quantize writes them. For each the test images of MNIST run through the engine and
through the exported C on this machine, with its three inner loops. Compiled for each core, the inner loop is taken from
the object file: its instructions are counted, and llvm-mca models their cycles where it knows the core. The model has
no flash and no caches.

Needs arm-none-eabi-gcc, riscv64-unknown-elf-gcc, llvm-mca-19 and a C compiler for this machine.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llvm_mca import MODEL, cycles, run
from torchadder.data import load_dataset
from torchadder.engine import Engine
from torchadder.export import export_c
from torchadder.export.c.sources import logits as expected_logits
from torchadder.lab import record
from torchadder.quant import Program

ROOT = Path(__file__).resolve().parent.parent
ARM, RISCV = "arm-none-eabi-", "riscv64-unknown-elf-"
# Arm's instructions in portable C, as in the tests.
DSP = ["-D__ARM_FEATURE_DSP", "-D__ARM_FEATURE_SIMD32", f"-I{ROOT / 'tests' / 'export' / 'acle'}"]
LOOPS = {"portable": [], "scalar": ["-DTORCHADDER_SCALAR"], "DSP, emulated": DSP}


class Core(NamedTuple):
    tools: str  # what the names of compiler and objdump begin with
    flags: str
    triple: str | None = None  # for llvm-mca
    has_dsp: bool = False


CORES = {
    "cortex-m0": Core(ARM, "-mcpu=cortex-m0 -mthumb"),
    "cortex-m3": Core(ARM, "-mcpu=cortex-m3 -mthumb"),
    "cortex-m4": Core(ARM, "-mcpu=cortex-m4 -mthumb", "thumbv7em-none-eabi", True),
    "cortex-m7": Core(ARM, "-mcpu=cortex-m7 -mthumb", "thumbv7em-none-eabi", True),
    "cortex-m33": Core(ARM, "-mcpu=cortex-m33 -mthumb", "thumbv8m.main-none-eabi", True),
    "rv32imc": Core(RISCV, "-march=rv32imc -mabi=ilp32 --specs=picolibc.specs"),
}
# The element operations of one round of the inner loop, and an instruction with the least number that it has of it.
DSP_ROUNDS = {"adder": (128, "usada8", 32), "adder4": (64, "usada8", 16), "conv": (64, "smlad", 32)}
ROUNDS = {
    "adder": (8, "and", 8),
    "adder7": (16, "and", 8),
    "adder4": (16, "and", 8),
    "conv": (16, "ml?(ul|a)", 16),
    "conv_of_one": (8, "mul", 8),  # patch at a time, on Cortex-M0
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tadder")
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "microcontrollers.json")
    arguments = parser.parse_args()
    images = load_dataset("mnist", arguments.data).test
    rows: list[dict[str, Any]] = []
    for file in arguments.files:
        about = Engine(file).about
        network = {"op": about["op"], "bits": int(about["bits"])}
        with tempfile.TemporaryDirectory() as folder:
            for row in (*equality(file, Path(folder), images), *sizes(file, Path(folder)), *loops(file, Path(folder))):
                rows.append({**network, **row})
                print(rows[-1])
    tools = ("cc", f"{ARM}gcc", f"{RISCV}gcc", MODEL)
    versions = {tool: run(tool, "--version").strip().splitlines()[0].strip() for tool in tools}
    record.write(arguments.out, record.make("microcontrollers", 1, rows, versions=versions))
    return 0


def equality(file: Path, folder: Path, images: Any) -> Iterator[dict[str, Any]]:
    """Count the images for which the C code gives the class of the engine, and the logits of the program."""
    draft = export_c(file, folder / "net")
    engine, program = Engine(file, threads=1), Program.load(file)
    q = program.quantize(images.images)
    expected = np.concatenate([expected_logits(draft, part) for part in q.split(500)])
    classes = engine(q, quantized=True).argmax(1).numpy()
    dense = np.ascontiguousarray(q.permute(0, 2, 3, 1).numpy())
    for name, flags in LOOPS.items():
        library = folder / f"{len(name)}.so"
        run("cc", "-std=c99", "-O2", "-shared", "-fPIC", *flags, folder / "net" / "net.c", "-o", library)
        net = ctypes.CDLL(str(library))
        logits, found = np.zeros_like(expected), np.zeros(len(q), np.int64)
        arena = np.zeros(draft.arena, np.uint8)
        for i in range(len(q)):
            found[i] = net.net_run(*(ctypes.c_void_p(array.ctypes.data) for array in (arena, dense[i], logits[i])))
        yield {
            "what": "equality",
            "loop": name,
            "images": len(q),
            "equal_classes": int((found == classes).sum()),
            "equal_logits": int((logits == expected).all(1).sum()),
            "correct": int((found == images.labels.numpy()).sum()),
        }


def sizes(file: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Return bytes of code, constant tables, arena and stack by core."""
    draft = export_c(file, folder / "net")
    for name, core in CORES.items():
        compiled = compile_for(core, folder)
        text = int(run(f"{core.tools}size", compiled).split()[6])
        parts = {"code": text - draft.flash, "tables": draft.flash, "arena": draft.arena}
        graph = compiled.with_suffix(".ci").read_text()
        yield {"what": "size", "core": name, **parts, "stack": stack(graph, "net_run")}


def stack(graph: str, function: str) -> int:
    """Return the bytes of stack that a call of ``function`` takes at most, without the functions of the C library.

    ``graph``: what GCC writes with -fcallgraph-info=su. Layers call *_patch, *_tile and *_tap through pointers.
    """
    frames = {name: int(size) for name, size in re.findall(r'node: .* title: "(.*?)" .*\\n(\d+) bytes', graph)}
    calls: dict[str, set[str]] = {}
    for caller, called in re.findall(r'edge: .* sourcename: "(.*?)" targetname: "(.*?)"', graph):
        calls.setdefault(caller, set()).add(called)
    calls["__indirect_call"] = {name for name in frames if name.endswith(("_patch", "_tile", "_tap"))}

    def deepest(name: str) -> int:
        return frames.get(name, 0) + max(map(deepest, calls.get(name, ())), default=0)

    return deepest(function)


def loops(file: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Return the instructions, and where llvm-mca knows the core the cycles, of the inner loop by core."""
    draft = export_c(file, folder / "net")
    kernels = {"adder", "adder4", "conv"} & {*draft.fragments}
    if len(kernels) != 1 or "binary" in draft.fragments:
        return
    (kernel,) = kernels
    for name, core in CORES.items():
        kind = "adder7" if kernel == "adder" and not core.has_dsp and draft.adder_max < 128 else kernel
        kind = "conv_of_one" if kind == "conv" and name == "cortex-m0" else kind
        elements, instruction, count = DSP_ROUNDS[kernel] if core.has_dsp else ROUNDS[kind]
        listing = run(f"{core.tools}objdump", "-d", "--no-show-raw-insn", compile_for(core, folder))
        function = "add_differences" if kind == "adder7" and "<add_differences>:" in listing else f"{kernel}_tile"
        code = inner_loop(listing, function, instruction, count)
        row = {"what": "loop", "core": name, "kernel": kind, "elements": elements, "instructions": len(code)}
        yield row | ({"cycles": cycles(repeated(code), core.triple, name)} if core.triple else {})


def compile_for(core: Core, folder: Path) -> Path:
    compiled = folder / "net.o"
    options = [*core.flags.split(), "-std=c99", "-O2", "-fcallgraph-info=su", "-c"]
    run(f"{core.tools}gcc", *options, folder / "net" / "net.c", "-o", compiled)
    return compiled


def inner_loop(listing: str, function: str, instruction: str, count: int) -> list[str]:
    """Return the instructions of the shortest loop of a function that has ``count`` of one instruction."""
    listing = re.sub(r"\n\n?[0-9a-f]+ <\.L\w+>:\n", "\n", listing)
    body = re.search(rf"^[0-9a-f]+ <{function}>:\n((?:.+\n)+)", listing, re.MULTILINE)[1]  # type: ignore[index]
    lines = [
        (int(address, 16), re.sub(r"\s*(@.*|# .*|<.*)$", "", text).strip())
        for address, text in re.findall(r"^\s+([0-9a-f]+):\s+(.*)$", body, re.MULTILINE)
    ]
    found = []
    for address, text in lines:
        target = re.match(r"(?:b(?!l\b|x\b|ic)[\w.]+|j)\s+(?:\S+,)?([0-9a-f]+)$", text)
        if target and int(target[1], 16) <= address:
            code = [text for at, text in lines if int(target[1], 16) <= at <= address]
            if sum(bool(re.match(instruction, text)) for text in code) >= count:
                found.append(code)
    return min(found, key=len)


def repeated(code: list[str]) -> str:
    """Return a loop for llvm-mca, in which a branch leads nowhere else."""
    text = "\n".join(re.sub(r"^b\w+(\.[nw])?\s+[0-9a-f]+$", "bne .", line) for line in code)
    return ".syntax unified\n" + re.sub(r"\.[nw]\b", "", text)


if __name__ == "__main__":
    sys.exit(main())

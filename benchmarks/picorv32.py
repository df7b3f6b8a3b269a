"""Count the cycles of exported networks on a RISC-V core with and without multiplier: the RTL of PicoRV32.

Without multiplier twice: with the multiplications of the C code, and with those of the compiler's library.

    pip install pythondata-cpu-picorv32
    python benchmarks/picorv32.py FILE.tadder...     # writes results/picorv32.json

Needs verilator and riscv64-unknown-elf-gcc. Memory answers in the next cycle, as in PicoRV32's own benchmark.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvm_mca import run
from microcontrollers import RISCV
from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.export import export_c
from torchadder.lab import record

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS, BOARDS = ROOT / "benchmarks", ROOT / "tests" / "export" / "boards"
CORES = {  # parameters of the core, and what the program is compiled for
    "with multiplier": (["-GENABLE_FAST_MUL=1", "-GBARREL_SHIFTER=1"], "-march=rv32im"),
    "without multiplier": (["-GBARREL_SHIFTER=1"], "-march=rv32i"),
}
# Without the macro that names the family of the core, the C code multiplies as on any other core, and the compiler puts
# a function of its library there.
LIBRARY = "without multiplier, with libgcc's"
WAYS = CORES | {LIBRARY: (CORES["without multiplier"][0], "-march=rv32i -U__riscv")}
PLACES = {"CODE": 0, "DATA": 0x80000, "SIZE": 0x80000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tadder")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "picorv32.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for core in WAYS:
            simulator = build_core(Path(folder), core)
            for file in arguments.files:
                about = Engine(file).about
                draft = export_c(file, Path(folder) / "net")
                cycles = cycles_of_network(simulator, Path(folder), core)
                operations = sum(draft.operations.values())
                network = {"op": about["op"], "bits": int(about["bits"])}
                rows.append({"core": core, **network, "operations": operations, "cycles": cycles})
                print(rows[-1], flush=True)
    record.write(arguments.out, record.make("picorv32", 1, rows, versions=versions()))
    return 0


def versions() -> dict[str, str]:
    found = {tool: run(tool, "--version").splitlines()[0].strip() for tool in ("verilator", f"{RISCV}gcc")}
    return {**found, "picorv32": version("pythondata-cpu-picorv32")}


def build_core(place: Path, core: str) -> Path:
    """Return a program that runs a memory image on the core; it is built in a folder inside ``place``."""
    import pythondata_cpu_picorv32  # type: ignore[import-not-found]  # the source of the core

    source = Path(pythondata_cpu_picorv32.data_location) / "picorv32.v"
    folder, (parameters, _) = place / f"rtl-{core.partition(' ')[0]}", WAYS[core]
    options = ["--cc", "--exe", "--build", "-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--top-module", "picorv32"]
    options += ["-CFLAGS", "-O2", "--Mdir", str(folder)]
    run("verilator", *options, *parameters, source, BENCHMARKS / "picorv32.cpp")
    return folder / "Vpicorv32"


def cycles_of_network(simulator: Path, folder: Path, core: str) -> int:
    """Return the cycles of an image on the core. Raises UserError where the logits of another come out wrong."""
    failures, cycles = map(int, run(simulator, build_program(folder, core)).split())
    if failures:
        raise UserError(f"the last test vector is wrong on a core {core}")
    return cycles


def build_program(folder: Path, core: str) -> Path:
    """Return the memory image, for ``core``, of the network that is exported to ``folder``/net.

    It runs the last test vector only: a large network takes billions of simulated cycles for all of them.
    """
    march, place = WAYS[core][1], folder / core
    place.mkdir(exist_ok=True)
    every, last = "vector = 0; vector < VECTORS", "vector = VECTORS - 1; vector < VECTORS"
    test = (folder / "net" / "net_test.c").read_text()
    if every not in test:
        raise UserError("net_test.c has another loop over its vectors than this file expects")
    (place / "net_test.c").write_text(test.replace(every, last))
    sources = [BENCHMARKS / "picorv32.c", folder / "net" / "net.c", place / "net_test.c"]
    places = [f"-Wl,--defsym={name}={value}" for name, value in PLACES.items()]
    link = ["--specs=picolibc.specs", "-nostartfiles", *places, "-T", BOARDS / "board.ld"]
    flags = [*march.split(), "-mabi=ilp32", "-O2", "-std=c99", f"-I{folder / 'net'}"]
    run(f"{RISCV}gcc", *flags, *sources, *link, "-o", place / "program")
    run(f"{RISCV}objcopy", "-O", "binary", "-j", ".text", place / "program", place / "program.bin")
    return place / "program.bin"


if __name__ == "__main__":
    sys.exit(main())

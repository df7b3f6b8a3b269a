"""Run exported networks on the cores of microcontrollers, in QEMU: the logits are those that torchadder computed."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.export.conftest import STRICT, run
from tests.export.test_c import network

from torchadder.export import export_c

SOURCES = Path(__file__).parent / "boards"
NETWORKS = {"adder8": ("adder", 8), "adder4": ("adder", 4), "ordinary": ("conv", 8), "signs": ("binary", 8)}


class Board(NamedTuple):
    """Describe a machine of QEMU: what it is compiled with, and where its memory lies."""

    machine: str
    flags: str
    code: int
    data: int
    size: int = 1 << 18
    arm: bool = True


BOARDS = {
    "cortex-m0": Board("microbit", "-mcpu=cortex-m0 -mthumb", 0, 0x20000000, 1 << 14),
    "cortex-m3": Board("mps2-an385", "-mcpu=cortex-m3 -mthumb", 0, 0x20000000),
    "cortex-m4": Board("mps2-an386", "-mcpu=cortex-m4 -mthumb", 0, 0x20000000),
    "cortex-m7": Board("mps2-an500", "-mcpu=cortex-m7 -mthumb", 0, 0x20000000),
    "cortex-m33": Board("mps2-an505", "-mcpu=cortex-m33 -mthumb", 0x10000000, 0x38000000),
    "cortex-m55": Board("mps3-an547", "-mcpu=cortex-m55 -mthumb", 0, 0x20000000),
    "rv32imc": Board("virt", "-march=rv32imc -mabi=ilp32", 0x80000000, 0x80400000, arm=False),
    "rv32i": Board("virt", "-march=rv32i -mabi=ilp32", 0x80000000, 0x80400000, arm=False),
}


def tools(board):
    """Return compiler, options and emulator."""
    if board.arm:
        return "arm-none-eabi-gcc", ["--specs=nosys.specs"], "qemu-system-arm"
    return "riscv64-unknown-elf-gcc", ["--specs=picolibc.specs"], "qemu-system-riscv32"


def emulate(board, program):
    """Return what main() of a program returns on the board."""
    command = [tools(board)[2], "-M", board.machine, "-display", "none", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting"] if board.arm else ["-bios", "none"]
    return subprocess.run([*command, "-kernel", str(program)], timeout=120).returncode


def build(board, sources, program, *flags):
    compiler, options, _ = tools(board)
    places = (f"-Wl,--defsym={name}={value}" for name, value in zip(("CODE", "DATA", "SIZE"), board[2:5], strict=True))
    start = SOURCES / ("arm.c" if board.arm else "riscv.c")
    link = [*options, "-nostartfiles", *places, "-T", SOURCES / "board.ld"]
    run(compiler, *board.flags.split(), "-O2", *flags, start, *sources, *link, "-o", program)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with four networks and a main() that returns the number of their wrong vectors."""
    folder = tmp_path_factory.mktemp("networks")
    arena = max(export_c(network(op=op, bits=bits), folder / name, name=name).arena
                for name, (op, bits) in NETWORKS.items())  # fmt: skip
    headers = "".join(f'#include "{name}/{name}.h"\n' for name in NETWORKS)
    tests = " + ".join(f"{name}_test((void *)memory)" for name in NETWORKS)
    memory = f"static uint32_t memory[{arena // 4}];\n"
    (folder / "main.c").write_text(f"{headers}{memory}int main(void) {{ return (int)({tests}); }}\n")
    return folder


def needs_tools(board):
    compiler, _, emulator = tools(board)
    if not (shutil.which(compiler) and shutil.which(emulator)):
        pytest.skip(f"needs {compiler} and {emulator}")


@pytest.mark.parametrize("core", ["cortex-m4", "rv32i"])
def test_failures_are_reported(core, tmp_path):
    needs_tools(BOARDS[core])
    (tmp_path / "main.c").write_text("int main(void) { return 3; }\n")
    build(BOARDS[core], [tmp_path / "main.c"], tmp_path / "program")
    assert emulate(BOARDS[core], tmp_path / "program") == 3


@pytest.mark.parametrize("core", BOARDS)
def test_logits_are_equal(folder, core, tmp_path):
    board = BOARDS[core]
    needs_tools(board)
    sources = [folder / name / f"{name}{end}.c" for name in NETWORKS for end in ("", "_test")]
    build(board, [folder / "main.c", *sources], tmp_path / "program", *STRICT)
    assert emulate(board, tmp_path / "program") == 0


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="needs arm-none-eabi-gcc")
@pytest.mark.parametrize(("core", "instructions"), [("cortex-m4", ("usada8", "smlad")), ("cortex-m0", ())])
def test_the_inner_loops_of_a_core(folder, core, instructions, tmp_path):
    flags = [*BOARDS[core].flags.split(), *STRICT, "-O2"]
    for name in ("adder8", "adder4", "ordinary"):
        run("arm-none-eabi-gcc", *flags, "-c", folder / name / f"{name}.c", "-o", tmp_path / f"{name}.o")
    listing = "".join(run("arm-none-eabi-objdump", "-d", path) for path in sorted(tmp_path.glob("*.o")))
    assert [name for name in ("usada8", "smlad") if f"\t{name}\t" in listing] == [*instructions]

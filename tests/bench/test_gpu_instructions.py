"""benchmarks/gpu_instructions.py: what it reads from disassembled code, and what our kernels' code must be."""

import importlib.util

import pytest
import torch
from tests.bench.conftest import script

from torchadder.ops.gpu import cuda
from torchadder.ops.gpu.cuda import FORWARD_TILES, GRAD_INPUT_TILES

PLACE = "desc[UR4][R2.64+0x10]"
ROUND = "FADD R20, R21, -R22\n" * 3


@pytest.fixture(scope="module")
def instructions():
    return script("gpu_instructions")


def disassembled(text):
    """As nvdisasm prints a list of instructions and labels."""
    lines = text.strip().splitlines()
    return "\n".join(
        line if line.startswith(".L") else f"        /*{16 * i:04x}*/                   {line} ;"
        for i, line in enumerate(lines)
    )


BODIES = {  # how much of the body's arithmetic hides its loads
    "used at once": (f"LDG.E R8, {PLACE}\nFADD R9, R8, R7\n{ROUND}", 0),
    "used at once by what is no arithmetic": (f"LDG.E.U16 R8, {PLACE}\nIMAD.U32 R9, R8, 0x10000, RZ\n{ROUND}", 0),
    "used after it": (f"LDG.E R8, {PLACE}\n{ROUND}STS [R4], R8", 3),
    "used between": (f"FADD R1, R1, R5\nLDG.E R8, {PLACE}\nFFMA R1, R1, R5, R6\nFADD R9, |R8|, R7\n{ROUND}", 1),
    "every kind of arithmetic": (f"LDG.E R8, {PLACE}\nFFMA R1, R1, R5, R6\nFMNMX R1, R1, R5, PT\n{ROUND}MOV R9, R8", 5),
    "bytes": (f"LDG.E R8, {PLACE}\nVABSDIFF4.U8.ACC R1, R1, R5, R6\nMOV R9, R8", 1),
    "the least of two": (f"LDG.E R8, {PLACE}\n{ROUND}LDG.E R9, {PLACE}\nFADD R1, R1, R5\nMOV R7, R9\nMOV R7, R8", 1),
    "the last of a .128": (f"LDG.E.128 R8, {PLACE}\nFADD R1, R1, R5\nMOV R7, R11\n{ROUND}", 1),
    "after a .128": (f"LDG.E.128 R8, {PLACE}\nFADD R1, R12, R7\n{ROUND}STS [R4], R8", 4),
    "the last of a .64": (f"LDG.E.64 R8, {PLACE}\nFADD R1, R1, R5\nMOV R7, R9\n{ROUND}", 1),
    "after a .64": (f"LDG.E.64 R8, {PLACE}\nFADD R1, R10, R7\n{ROUND}STS [R4], R8", 4),
    "a cache hint is no width": (f"LDG.E.LTC128B R8, {PLACE}\nFADD R1, R9, R7\n{ROUND}STS [R4], R8", 4),
    "predicated": (f"@!P0 LDG.E.128 R8, {PLACE}\nFADD R1, R1, R5\n@P1 MOV R7, R10\n{ROUND}", 1),
    "stored by a wide store": (f"LDG.E R11, {PLACE}\nFADD R1, R1, R5\nSTS.128 [R4], R8\n{ROUND}", 1),
    "the address of a wide store is narrow": (f"LDG.E R11, {PLACE}\n{ROUND}STS.128 [R9], R4", 3),
    "stored in global memory": (f"LDG.E R9, {PLACE}\nFADD R1, R1, R5\nSTG.E.64 {PLACE}, R8\n{ROUND}", 1),
    "half of an address": (f"LDG.E R3, {PLACE}\nFADD R1, R1, R5\nLDS R4, [R2.64]\n{ROUND}", 1),
    "half of a wide addend": (f"LDG.E R9, {PLACE}\nFADD R1, R1, R5\nIMAD.WIDE R4, R5, R6, R8\n{ROUND}", 1),
    "a barrier's number": (f"LDG.E R8, {PLACE}\nFADD R1, R1, R5\nBAR.SYNC R8, 0x80\n{ROUND}", 1),
    "compared": (f"LDG.E R8, {PLACE}\nFADD R1, R1, R5\nFSETP.NEU.AND P0, PT, R8, R8, PT\n{ROUND}", 1),
    "written is not read": (f"LDG.E R8, {PLACE}\nFADD R1, R1, R5\n@!P0 MOV R8, RZ\n{ROUND}STS [R4], R8", 4),
    "a uniform register is another": (f"LDG.E R8, {PLACE}\nFADD R1, R1, UR8\n{ROUND}STS [R4], R8", 4),
    "never used": (f"FADD R1, R1, R5\nLDG.E R8, {PLACE}\n{ROUND}", 3),
    "an asynchronous copy": (f"LDGSTS.E.128 [R8], {PLACE}\nFADD R9, R8, R7\n{ROUND}", 4),
    "no load": (ROUND, 3),
}


@pytest.mark.parametrize(("text", "arithmetic"), BODIES.values(), ids=BODIES.keys())
def test_arithmetic_between_a_load_and_its_use_is_counted(instructions, text, arithmetic):
    (body,) = instructions.innermost_loops(disassembled(text))
    assert len(body) == len(text.strip().splitlines())
    assert instructions.hidden_by(body) == arithmetic


def test_only_an_innermost_loop_counts(instructions):
    inner = f".L_x_1:\nLDG.E R8, {PLACE}\n{ROUND}STS [R4], R8\n@P0 BRA `(.L_x_1)"
    text = f"LDG.E R8, {PLACE}\n.L_x_0:\nMOV R9, R8\n{inner}\n@P1 BRA `(.L_x_0)\nEXIT"
    (body,) = instructions.innermost_loops(disassembled(text))
    assert [name for name, _ in body] == ["LDG", "FADD", "FADD", "FADD", "STS", "BRA"]
    assert instructions.hidden_by(body) == 3


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="no cuda.core at hand")
@pytest.mark.parametrize(
    ("images", "dtype"),
    [("NHWC", torch.float32), ("NHWC", torch.bfloat16), ("NCHW", torch.float32), ("NCHW", torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("place", range(max(len(FORWARD_TILES), len(GRAD_INPUT_TILES))))
def test_no_round_waits_for_memory_or_spills(instructions, place, images, dtype, monkeypatch, tmp_path):
    """In the loop of each tile arithmetic hides the loads for the next round, and sums stay in registers."""
    pytest.importorskip("triton.backends.nvidia", reason="needs nvdisasm, which Triton brings along")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, tiles in {"FORWARD_TILES": FORWARD_TILES, "GRAD_INPUT_TILES": GRAD_INPUT_TILES}.items():
        monkeypatch.setattr(cuda, name, tiles[place : place + 1] or tiles[-1:])
    for choices in (cuda._of_forward, cuda._of_grad_input):
        choices.cache_clear()
    for row in instructions.of_cuda(90, instructions.layer_of("ResNet-18 3x3", images, dtype)):
        about = f"{row['operator']} {row['tile']}"
        assert row["global_loads"], about
        assert 2 * row["hidden_by"] >= row["arithmetic"], about
        assert row["spills"] == 0, about


def test_table_marks_loops_that_wait_for_memory():
    def row(operator, **about):
        at = {"route": "cuda", "layer": "3x3", "format": "NHWC", "dtype": "float32", "operator": operator}
        return {**at, "arithmetic": 1024, "spills": 0, "share": 0.875, **about}

    rows = [
        row("at half", hidden_by=512),
        row("below", hidden_by=511),
        row("spilling, below", hidden_by=0, spills=2),
        row("not counted"),
    ]
    record = {"rows": rows, "triton": "3.7", "nvrtc": "13.5", "capability": 90, "date": "2020-06-14"}
    table = script("gpu_tables").instructions_table(record)
    assert "† less than half of the loop's arithmetic" in table
    assert table.splitlines()[-4:] == [
        "| 3x3 at half | 88% |",
        "| 3x3 below | 88%† |",
        "| 3x3 spilling, below | 88%*† |",
        "| 3x3 not counted | 88% |",
    ]

"""Test that training keeps the memory of a step for the next one."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, re, torch
from torchadder.train.memory import keep_freed_memory
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # malloc gives blocks of more than 64 kiB back; by default it depends
{}
def resident():
    return int(re.search("VmRSS:\\\\s+(\\\\d+) kB", open("/proc/self/status").read())[1]) / 1024
torch.ones(1 << 20).sum()  # loads what torch needs for it
before = resident()
for _ in range(3):
    tensors = [torch.ones(1 << 20) for _ in range(10)]  # 4 MiB each
    del tensors
print(resident() - before)
"""
STEP = 40  # MiB
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")


def kept(call, **variables):
    """Return how much more memory the process holds after three steps, MiB."""
    others = ("MALLOC_", "GLIBC_", "LD_PRELOAD")
    own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call)], env={**own, **variables}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@needs_glibc
def test_the_memory_of_a_step_stays_for_the_next_one():
    assert kept("") < STEP / 2
    assert kept("keep_freed_memory()") > STEP / 2


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_variables_of_glibc_decide_where_they_are_set(name, value):
    assert kept("keep_freed_memory()", **{name: value}) < STEP / 2


@needs_glibc
def test_other_variables_of_glibc_change_nothing():
    assert kept("keep_freed_memory()", GLIBC_TUNABLES="glibc.cpu.hwcaps=") > STEP / 2

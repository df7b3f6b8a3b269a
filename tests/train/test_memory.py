"""Test that training keeps the memory of a step for the next one."""

import os
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


def kept(call, **variables):
    """Return how much more memory the process holds after three steps, MiB."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call)], env={**own, **variables}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_the_memory_of_a_step_stays_for_the_next_one():
    assert kept("") < STEP / 2
    assert kept("keep_freed_memory()") > STEP / 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_variables_of_glibc_decide_where_they_are_set():
    assert kept("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072") < STEP / 2

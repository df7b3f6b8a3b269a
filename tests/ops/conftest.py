"""Define the variants of a kernel (instruction set and order of summation), and set numbers of threads."""

from pathlib import Path

import pytest
import torch

from torchadder import kernels

EXTENDED = {"avx512vnni": "avx512"}  # sets that have kernels of their own but are not selected by name


def runs_here(isa):
    """Return whether this CPU can run the kernels of an instruction set."""
    if isa in EXTENDED:
        flags = set(Path("/proc/cpuinfo").read_text().split()) if EXTENDED[isa] in kernels.available() else set()
        return {"avx512_vnni", "avx512_vpopcntdq"} <= flags
    return isa in kernels.available()


def variants():
    """Return kernels.variants(), and a visible skip for each instruction set that this CPU lacks."""
    lacking = [isa for isa in kernels.compiled() if isa not in kernels.available()]
    skipped = [pytest.param(isa, marks=pytest.mark.skip(reason=f"this CPU cannot run {isa}")) for isa in lacking]
    return [*kernels.variants(), *skipped]


@pytest.fixture(params=variants())
def variant(request):
    """Run the test once on each variant."""
    with kernels.using(request.param):
        yield request.param


@pytest.fixture
def threads():
    """Return torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

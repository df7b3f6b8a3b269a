"""A CPU that has no more than AVX2, as a process sees it: every library in it then takes its own best AVX2 kernels.

The variables that libraries have for this (ONEDNN_MAX_CPU_ISA and the like) differ, and ONNX Runtime and OpenVINO's own
kernels have none. On Linux the CPUID instruction itself can be made to fault, for a process and what it starts;
native/src/cpu_mask.cpp then answers without AVX-512, AVX-VNNI and AMX. glibc's memcpy, chosen before that, stays.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from torchadder import kernels
from torchadder.errors import UserError

CPUS = ("avx2",)
HIDDEN = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_tile": "AMX"}
CPUINFO = Path("/proc/cpuinfo")


def library_path() -> Path:
    """Where the library for LD_PRELOAD was installed."""
    return kernels.library_path().with_name("libtorchadder_cpu_mask.so")


def description(cpu: str) -> str:
    """``avx2 (AVX-512, VNNI, AMX hidden)``: what ``environment(cpu)`` makes of this CPU."""
    hidden = dict.fromkeys(name for flag, name in HIDDEN.items() if flag in _flags())
    return f"{cpu} ({', '.join(hidden)} hidden)" if hidden else cpu


def environment(cpu: str) -> dict[str, str]:
    """Variables for a process that shall see ``cpu``; none where this CPU has nothing to hide.

    Raises UserError where it cannot be.
    """
    flags = _flags()
    if cpu not in CPUS:
        raise UserError(f"--cpu {cpu}: choose of {', '.join(CPUS)}")
    if cpu not in flags:
        raise UserError(f"--cpu {cpu}: this is no Linux machine with {cpu}; leave it out")
    if not flags & HIDDEN.keys():
        return {}
    if "cpuid_fault" not in flags or platform.machine() != "x86_64":
        raise UserError(
            f"--cpu {cpu}: CPU and kernel cannot hide instructions (no cpuid_fault in {CPUINFO}); leave it out"
        )
    if not library_path().is_file():
        raise UserError(f"--cpu {cpu}: {library_path().name} is missing: reinstall torchadder")
    preload = " ".join(filter(None, [str(library_path()), os.environ.get("LD_PRELOAD")]))
    # (Python's own handler of the same signal would take its place.)
    return {"LD_PRELOAD": preload, "TORCHADDER_CPU": cpu, "PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""}


def check() -> None:
    """Raise UserError in a process that was started to see another CPU and does not."""
    cpu = os.environ.get("TORCHADDER_CPU")
    masked = getattr(ctypes.CDLL(None), "torchadder_cpu_is_masked", None)
    if cpu and not (masked and masked()):
        raise UserError(f"--cpu {cpu}: {library_path().name} was not loaded; a path without spaces and colons may help")


def _flags() -> set[str]:
    if not CPUINFO.is_file():
        return set()
    lines = (line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").partition(":")[2].split())

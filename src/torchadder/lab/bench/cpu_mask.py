"""Hide AVX-512, VNNI and AMX from a process, so that every library in it takes its best AVX2 kernels.

Libraries have different variables for this (ONEDNN_MAX_CPU_ISA and others); ONNX Runtime and OpenVINO's own kernels
have none. On Linux the CPUID instruction can be made to fault for a process and its children; benchmarks/cpu_mask.cpp,
loaded by LD_PRELOAD, then answers without those instructions. glibc selects its memcpy before
that, so memcpy may still use AVX-512.

The library is compiled when it is first needed, from a source checkout, into the cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from torchadder import files
from torchadder.errors import UserError

CPUS = ("avx2",)
HIDDEN = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_tile": "AMX"}
CPUINFO = Path("/proc/cpuinfo")
SOURCE = Path("benchmarks/cpu_mask.cpp")  # in the working directory


def description(cpu: str) -> str:
    """Return what ``environment(cpu)`` makes of this CPU: ``avx2 (AVX-512, VNNI, AMX hidden)``."""
    flags = _flags()
    hidden = dict.fromkeys(name for flag, name in HIDDEN.items() if flag in flags)
    return f"{cpu} ({', '.join(hidden)} hidden)" if hidden else cpu


def environment(cpu: str) -> dict[str, str]:
    """Return the variables of a process that sees ``cpu``; none if this CPU has nothing to hide.

    Raises UserError if instructions cannot be hidden here, or if the library cannot be compiled.
    """
    flags = _flags()
    if cpu not in CPUS:
        raise UserError(f"cpu={cpu} is unknown: choose {', '.join(CPUS)}")
    if cpu not in flags:
        raise UserError(f"cpu={cpu} needs a Linux machine with {cpu}: leave it out")
    if not flags & HIDDEN.keys():
        return {}
    if "cpuid_fault" not in flags or platform.machine() != "x86_64":
        raise UserError(
            f"cpu={cpu}: this CPU and kernel cannot hide instructions (no cpuid_fault in {CPUINFO}): leave it out"
        )
    preload = " ".join(filter(None, [str(library(cpu)), os.environ.get("LD_PRELOAD")]))
    # Python's own handler of SIGSEGV would replace that of the library.
    return {"LD_PRELOAD": preload, "TORCHADDER_CPU": cpu, "PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""}


def library(cpu: str) -> Path:
    """Return the compiled library. Raises UserError without its source, a compiler or a usable cache folder."""
    if not SOURCE.is_file():
        raise UserError(f"cpu={cpu} needs {SOURCE}: run it in a source checkout of torchadder")
    path = files.cache_folder() / f"cpu_mask-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise UserError(f"cpu={cpu} needs a C++ compiler: install one (Debian, Ubuntu: g++) or name it with CXX")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(unfinished)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(unfinished, path)
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"code {error.returncode}")
        raise UserError(
            f"cpu={cpu}: {compiler} cannot compile {SOURCE} ({reason}): try another one with CXX"
        ) from error
    except OSError as error:
        raise UserError(f"cpu={cpu}: cannot build {path} ({error.strerror or error}): set XDG_CACHE_HOME") from error
    return path


def check() -> None:
    """Raise UserError in a process that was started to see another CPU and does not."""
    cpu = os.environ.get("TORCHADDER_CPU")
    is_masked = getattr(ctypes.CDLL(None), "torchadder_cpu_is_masked", None)
    if cpu and not (is_masked and is_masked()):
        raise UserError(
            f"cpu={cpu}: the library that hides instructions was not loaded: set XDG_CACHE_HOME to a path without "
            "spaces and colons"
        )


def _flags() -> set[str]:
    if not CPUINFO.is_file():
        return set()
    lines = (line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").partition(":")[2].split())

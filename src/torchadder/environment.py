"""Describe the environment of a run, for its records: versions, processor, threads, kernels and GPU."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from torchadder import kernels
from torchadder.ops import triton
from torchadder.version import __version__


def describe_environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return what a reader needs in order to trust or repeat the numbers of a run, as plain values for JSON.

    "kernels" is the instruction set in use and how its kernels sum. For a run on a GPU it is None, and "gpu" describes
    the GPU.
    """
    place = device if device is not None and device.type == "cuda" else None
    about: dict[str, Any] = {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "torchadder": __version__,
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "kernels": None if place else kernels.variant(),
    }
    if place:
        about["gpu"] = describe_gpu(place)
    return about


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Describe a GPU, its software, and the route (ops.triton) that computes adder layers on it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "route": triton.route(),
    }


def title_of_gpu(about: dict[str, Any]) -> str:
    """Return a line from the values of describe_gpu."""
    return f"{about['name']} (route {about['route']})"


def lacks_gpu() -> str | None:
    """Say why torch uses no GPU on this machine, and what to do; None where it uses one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org/get-started)"
    return f"torch {torch.__version__} finds no GPU that it can use: check that nvidia-smi lists one and its driver"


def available_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _program() -> str:
    """Return the name of the program; that of ``python -m torchadder`` is torchadder."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel module; None where there is none."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+(\.\d+)+", path.read_text()) if path.is_file() else None
    return found[0] if found else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

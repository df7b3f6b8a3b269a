"""The environment of a run: versions, processor, threads and kernels, as recorded beside its numbers."""

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
    """What a reader needs in order to trust or repeat the run's numbers; plain values for JSON.

    Where a GPU made them, it stands under "gpu", and no instruction set of the CPU under "kernels".
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
        "kernels": None if place else kernels.isa(),
    }
    if place:
        about["gpu"] = describe_gpu(place)
    return about


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """A GPU, the software between it and the numbers, and the route (ops.triton) that its adder layers take."""
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
    """What describe_gpu says, in a line."""
    return f"{about['name']} (route {about['route']})"


def lacks_gpu() -> str | None:
    """Why torch computes on no GPU here, and what to do; None where it does."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org/get-started)"
    return f"torch {torch.__version__} finds no GPU that it can use: see whether nvidia-smi lists one, with its driver"


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _program() -> str:
    """What was started; ``python -m torchadder`` is the command torchadder."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _driver() -> str | None:
    """The version of NVIDIA's kernel module."""
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

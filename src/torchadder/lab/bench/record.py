"""A benchmark's file in results/: what was run, where, and every number."""

from __future__ import annotations

import datetime
import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from torchadder import files
from torchadder.environment import describe_environment

# Variables that hold torch's own kernels to an instruction set: a reader must know if one was set.
LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "TORCHADDER_ISA")
GPU_LIMITS = ("TORCHADDER_GPU", "NVIDIA_TF32_OVERRIDE")  # to a route, or convolutions to a precision
_PLACES = ("--data", "--out")


def make(
    kind: str, repetitions: int, rows: list[dict[str, Any]], device: torch.device | None = None, **more: Any
) -> dict[str, Any]:
    """The record of one run of a benchmark; `repetitions` is the n behind every median."""
    limits = {name: os.environ[name] for name in (*LIMITS, *GPU_LIMITS) if name in os.environ}
    environment = describe_environment(device)
    environment["command"] = portable_command(environment["command"])
    return {
        "benchmark": kind,
        "date": today(),
        "environment": {**environment, "cores": os.cpu_count(), "limits": limits},
        "n": repetitions,
        "rows": rows,
        **more,
    }


def today() -> str:
    """The date, in UTC, as 2020-06-14."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def portable_command(command: str) -> str:
    """`command` without paths of the machine that ran it: a record is published.

    --data and --out go with their value where it leads out of the working folder; of any other such path the last
    name stays.
    """
    words: list[str] = []
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if not _leads_out(value):
            words.append(word)
        elif equals and flag in _PLACES:
            continue
        elif not equals and words and words[-1] in _PLACES:
            words.pop()
        else:
            words.append(flag + equals + Path(value).name)
    return shlex.join(words)


def write(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write `record` as JSON, whole or not at all; return it as written.

    Seconds are rounded to the tenth of a microsecond; a number that is not finite becomes null.
    """
    record = _rounded(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    return record


def _leads_out(value: str) -> bool:
    return value.startswith(("/", "~")) or ".." in Path(value).parts


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value

"""A benchmark's file in results/: what was run, where, and every number."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from .. import atomic
from ..environment import describe_environment

# Variables that hold torch's own kernels to an instruction set: a reader must know if one was set.
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "TORCHADDER_ISA")


def make(kind: str, repetitions: int, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The record of one run of a benchmark; `repetitions` is the n behind every median."""
    limits = {name: os.environ[name] for name in _LIMITS if name in os.environ}
    return {
        "benchmark": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "environment": {**describe_environment(), "cores": os.cpu_count(), "limits": limits},
        "n": repetitions,
        "rows": rows,
        **more,
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON, seconds rounded to the tenth of a microsecond; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, (json.dumps(_rounded(record), indent=1) + "\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value

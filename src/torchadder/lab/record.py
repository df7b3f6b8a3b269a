"""Write and read the record of a measurement: one JSON file that says what was run, where, and every number.

Benchmarks and reproduced tables share the format:

    benchmark     the kind of record: "layers", "train", "latency", "runs", ...
    date          the day of the measurement in UTC, as 2020-06-14
    environment   command, versions, processor, cores, threads, kernels, and variables that restrict kernels ("limits")
    n             repetitions behind each median; absent where every row has its own
    rows          one dictionary for each measurement

Each kind adds entries of its own. Seconds are floats in seconds; other units stand in the names (`adder_ms`).

The JSON file of a figure has the same date and environment. Instead of rows it has its name ("figure") and what it
draws.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchadder import files
from torchadder.environment import describe_environment
from torchadder.errors import UserError

Record = dict[str, Any]

# These variables restrict torch's kernels and ours to an instruction set: a reader must know if one was set.
CPU_LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "TORCHADDER_ISA")
LIMITS = (*CPU_LIMITS, "NVIDIA_TF32_OVERRIDE")
_PATH_FLAGS = ("--data", "--out")


def make(
    kind: str, repetitions: int, rows: list[dict[str, Any]], device: torch.device | None = None, **more: Any
) -> Record:
    """Return the record of a benchmark that this process ran now, on ``device`` if that is a GPU."""
    return {"benchmark": kind, **date_and_environment(device), "n": repetitions, "rows": rows, **more}


def date_and_environment(device: torch.device | None = None) -> Record:
    """Return the entries "date" and "environment" of a record that this process makes now."""
    environment = describe_environment(device)
    return {
        "date": today(),
        "environment": {
            **environment,
            "command": portable_command(environment["command"]),
            "cores": os.cpu_count(),
            "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        },
    }


def today() -> str:
    """Return the date in UTC, as 2020-06-14."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def portable_command(command: str) -> str:
    """Return ``command`` without paths of the machine that ran it, because records are published.

    A path is dropped with its flag (--data, --out) if it leads out of the working directory; any other such path is
    shortened to its last name.
    """
    words: list[str] = []
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if not _leads_out(value):
            words.append(word)
        elif equals and flag in _PATH_FLAGS:
            continue
        elif not equals and words and words[-1] in _PATH_FLAGS:
            words.pop()
        else:
            words.append(flag + equals + Path(value).name)
    return shlex.join(words)


def write(path: Path, record: Record) -> Record:
    """Write ``record`` to ``path`` completely or not at all, and return it as written.

    Numbers are rounded to 7 decimals (a tenth of a microsecond); one that is not finite becomes null. Raises UserError
    if the file cannot be written.
    """
    record = _rounded(record)
    content = (json.dumps(record, indent=1) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    return record


def read(path: Path) -> Record:
    """Return the record in ``path``. Raises UserError for a file that holds none."""
    try:
        record = json.loads(path.read_text())
        if isinstance(record, dict):
            return record
        reason = f"a {type(record).__name__} at top level"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise UserError(f"{path.name} is not a record ({reason}): measure it again")


def _leads_out(value: str) -> bool:
    return value.startswith(("/", "~")) or ".." in Path(value).parts


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(item) for item in value]
    return value

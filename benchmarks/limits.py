"""Measure the limits of this CPU's inner loops: compile and run limits.cpp and limits_u8.cpp, and record them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchadder.lab import record

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-w", f"-I{ROOT / 'native'}")
PROGRAMS = ("limits", "limits_u8")


def main() -> int:
    for name in PROGRAMS:
        printed = compiled_and_run(ROOT / "benchmarks" / f"{name}.cpp")
        kind = name.replace("_", "-")
        record.write(ROOT / "results" / f"{kind}.json", record.make(kind, printed["n"], printed["rows"]))
        for row in printed["rows"]:
            print(f"{row['isa']:10} {row['loop']:18} {row['tile']:6} {row['giga_ops']:7.1f} G/s")
    return 0


def compiled_and_run(source: Path) -> Any:
    """Compile and run ``source``, and return the JSON that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / source.stem
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(program)], check=True)
        return json.loads(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())

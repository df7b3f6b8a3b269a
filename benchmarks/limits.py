"""Compile and run limits.cpp; record what it prints, the limits of this CPU's inner loops, in results/limits.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torchadder.bench import record

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-w")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        source = ROOT / "benchmarks" / "limits.cpp"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'native' / 'src'}", str(source), "-o", str(program)], check=True)
        printed = json.loads(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout)
    record.write(ROOT / "results" / "limits.json", record.make("limits", printed["n"], printed["rows"]))
    for row in printed["rows"]:
        print(f"{row['isa']:8} {row['loop']:18} {row['tile']:6} {row['giga_ops']:6.1f} G/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

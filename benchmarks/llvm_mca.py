"""Run llvm-mca, which models the pipes and latencies of a core, and the compilers whose loops it is given."""

from __future__ import annotations

import re
import subprocess

MODEL = "llvm-mca-19"
ITERATIONS = 1000


def cycles(code: str, triple: str, core: str) -> float:
    """Return the modelled cycles of one iteration of a loop in assembly language."""
    printed = run(MODEL, f"-mtriple={triple}", f"-mcpu={core}", f"-iterations={ITERATIONS}", input=code)
    return int(re.search(r"Total Cycles:\s+(\d+)", printed)[1]) / ITERATIONS  # type: ignore[index]  # it prints that


def run(*command: object, input: str | None = None) -> str:
    """Return what a command prints. Raises CalledProcessError where it fails."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, input=input).stdout

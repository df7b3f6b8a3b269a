"""Quantize trained models to 8, 6, 5 and 4 bits and record their accuracies: python benchmarks/quantisation.py MODEL...

Runs `torchadder quantize MODEL --json` for each model. Options after `--` are passed to each call. `--also DATASET`
tests each program and its model on a second data set too, which may be a part of the published images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.lab import record

BITS = (8, 6, 5, 4)


def run(*words: str) -> dict[str, Any]:
    """Return what a command prints with --json. Ends the program with the exit code of one that fails."""
    done = subprocess.run([sys.executable, "-m", "torchadder", *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def second(file: str, dataset: str) -> dict[str, Any]:
    """Return the accuracy of a model or program on a second data set, of which a part is enough."""
    return run("eval", file, "--dataset", dataset, "--partial")


def on_second_images(row: dict[str, Any], program: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return ``row`` with the accuracies of other images; "trained_on" names those of calibration and fine-tuning."""
    measured = {name: program[name] for name in ("dataset", "images", "correct", "accuracy")}
    in_float = {f"float_{name}": model[name] for name in ("correct", "accuracy")}
    return {**row, **measured, **in_float, "trained_on": row["dataset"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the accuracy of quantized models.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run or a checkpoint")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="of activations and adder filters")
    parser.add_argument("--also", metavar="DATASET", help="a second data set to test on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/quantisation-mnist.json")
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options, passed = parser.parse_args(given[:end]), given[end + 1 :]
    rows: list[dict[str, Any]] = []
    for model in options.models:
        in_float = second(model, options.also) if options.also else {}
        for bits in options.bits:
            with tempfile.TemporaryDirectory() as folder:
                program = f"{folder}/net.tadder"
                found = run("quantize", model, "-o", program, "--bits", str(bits), *passed)
                in_bits = second(program, options.also) if options.also else {}
            del found["file"]
            new = [{"checkpoint": Path(model).name, **found}]
            if options.also:
                new.append(on_second_images(new[0], in_bits, in_float))
            for row in new:
                counts = f"{row['correct']:,} of {row['images']:,}, {row['float_correct']:,} in float"
                print(f"{model}, {row['dataset']}, {bits} bits: {counts}", flush=True)
            rows += new
            record.write(options.output, record.make("quantisation", 1, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Quantize trained models to 8, 6, 5 and 4 bits and record their accuracies: python benchmarks/quantisation.py MODEL...

Runs `torchadder quantize MODEL --json` for each model. Options after `--` are passed to each call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torchadder.lab import record

BITS = (8, 6, 5, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the accuracy of quantized models.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run or a checkpoint")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="of activations and adder filters")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/quantisation-mnist.json")
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options, passed = parser.parse_args(given[:end]), given[end + 1 :]
    rows = []
    for model in options.models:
        for bits in options.bits:
            with tempfile.TemporaryDirectory() as folder:
                words = ["quantize", model, "-o", f"{folder}/net.tadder", "--bits", str(bits), "--json", *passed]
                done = subprocess.run([sys.executable, "-m", "torchadder", *words], stdout=subprocess.PIPE, text=True)
            if done.returncode:
                return done.returncode
            found = json.loads(done.stdout)
            del found["file"]
            rows.append({"checkpoint": Path(model).name, **found})
            counts = f"{found['correct']:,} of {found['images']:,}, {found['float_correct']:,} in float"
            print(f"{model}, {bits} bits: {counts}", flush=True)
    record.write(options.output, record.make("quantisation", 1, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Collect finished training runs into one record of results/: python benchmarks/collect.py RUN... -o FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchadder.errors import UserError
from torchadder.lab import record
from torchadder.lab.reproduce.runs import collect


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect finished runs of `torchadder train` into one record.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/mnist-lenet5bn.json")
    options = parser.parse_args(arguments)
    try:
        result = collect(options.runs)
        record.write(options.output, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result["differing"]:
        print(f"note: the runs differ in {', '.join(result['differing'])}: listed run by run", file=sys.stderr)
    for row in result["rows"]:
        scheme = [str(row[name]) for name in ("op", "lr_scheme", "eta", "grad") if row[name] is not None]
        seeds = f"{row['n']} seed{'s' if row['n'] > 1 else ''}"
        print(f"{' '.join(scheme)}, {row['epochs']} epochs: {row['mean']:.2f}% over {seeds}")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

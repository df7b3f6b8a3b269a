"""Measure the pico networks: accuracy of each seed, and flash, memory and cycles of the exported C of the first.

    for seed in 0 1 2; do
      torchadder train pico-mnist --seed $seed
      torchadder quantize runs/pico-mnist-adder-s$seed/last.pt --seed $seed -o pico-s$seed.tadder
    done
    python benchmarks/pico.py pico-s0.tadder pico-s1.tadder pico-s2.tadder     # writes results/pico.json

Files of several networks are told apart by the name of the model that they hold. Needs what microcontrollers.py and
picorv32.py need.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from llvm_mca import run
from microcontrollers import ARM, sizes
from picorv32 import CORES, build_core, cycles_of_network, versions
from torchadder.data import load_dataset
from torchadder.engine import Engine
from torchadder.export import export_c
from torchadder.lab import record

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tadder")
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pico.json")
    arguments = parser.parse_args()
    test = load_dataset("mnist", arguments.data).test
    models: dict[str, list[Path]] = {}
    for file in arguments.files:
        models.setdefault(Engine(file).about["model"], []).append(file)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulators = {core: build_core(folder, core) for core in CORES}
        for model, programs in models.items():
            tested = [{"seed": seed, **accuracy(file, test)} for seed, file in enumerate(programs)]
            draft = export_c(programs[0], folder / "net")
            row = {
                "model": model,
                "bits": int(draft.network.about["bits"]),
                "operations": sum(draft.operations.values()),
                "input": math.prod(draft.network.shapes[0]),
                "programs": tested,
                "sizes": list(sizes(programs[0], folder)),
                "cycles": {core: cycles_of_network(simulators[core], folder, core) for core in CORES},
            }
            rows.append(row)
            print(row, flush=True)
    compiler = f"{ARM}gcc"
    tools = {**versions(), compiler: run(compiler, "--version").splitlines()[0].strip()}
    record.write(arguments.out, record.make("pico", 1, rows, versions=tools))
    return 0


def accuracy(file: Path, test: Any) -> dict[str, Any]:
    """Return the test accuracies of a program and of the network it was made of, in percent, and its hash."""
    engine = Engine(file)
    right = (engine(test.images).argmax(1) == test.labels).double().mean().item()
    return {
        "accuracy": 100 * right,
        "float_accuracy": float(engine.about["float_accuracy"]),
        "images": len(test),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Measure networks for microcontrollers: accuracy of each seed; flash, memory and cycles of the C of the first.

    for seed in 0 1 2; do
      torchadder train pico-mnist --seed $seed
      torchadder quantize runs/pico-mnist-adder-s$seed/last.pt --seed $seed -o pico-s$seed.tadder
    done
    python benchmarks/small_networks.py pico-s0.tadder pico-s1.tadder pico-s2.tadder -o results/pico.json

Files of several networks are told apart by model, operator and bits, which they hold. Cycles are those of an image on
the RTL of PicoRV32, as in picorv32.py. Needs what microcontrollers.py and picorv32.py need.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llvm_mca import run
from microcontrollers import ARM, sizes
from picorv32 import WAYS, build_core, cycles_of_network, versions
from torchadder.data import load_dataset, open_batches
from torchadder.engine import Engine
from torchadder.export import export_c
from torchadder.lab import record
from torchadder.train.loop import evaluate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tadder")
    parser.add_argument("--dataset", help="data set of the test images (default: that of the training)")
    parser.add_argument("--data", type=Path, help="folder with its files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/pico.json")
    arguments = parser.parse_args()
    networks: dict[tuple[str, str, int], list[Path]] = {}
    for file in arguments.files:
        about = Engine(file).about
        networks.setdefault((about["model"], about["op"], int(about["bits"])), []).append(file)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folder = Path(name)
        simulators = {core: build_core(folder, core) for core in WAYS}
        for (model, op, bits), programs in networks.items():
            dataset = arguments.dataset or Engine(programs[0]).about["dataset"]
            test = load_dataset(dataset, arguments.data).test
            tested = [{"seed": seed, **accuracy(file, test)} for seed, file in enumerate(programs)]
            draft = export_c(programs[0], folder / "net")
            cycles = pool.map(lambda core: cycles_of_network(simulators[core], folder, core), WAYS)
            row = {
                "model": model,
                "op": op,
                "bits": bits,
                "dataset": dataset,
                "operations": sum(draft.operations.values()),
                "input": math.prod(draft.network.shapes[0]),
                "programs": tested,
                "sizes": list(sizes(programs[0], folder)),
                "cycles": dict(zip(WAYS, cycles, strict=True)),
            }
            rows.append(row)
            print(row, flush=True)
    compiler = f"{ARM}gcc"
    tools = {**versions(), compiler: run(compiler, "--version").splitlines()[0].strip()}
    record.write(arguments.output, record.make("small-networks", 1, rows, versions=tools))
    return 0


def accuracy(file: Path, test: Any) -> dict[str, Any]:
    """Return the test accuracies of a program and of the network it was made of, in percent, and its hash."""
    engine = Engine(file)
    scores = evaluate(engine, open_batches(test, 250))
    return {
        "accuracy": scores.accuracy,
        "float_accuracy": float(engine.about["float_accuracy"]),
        "images": len(test),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())

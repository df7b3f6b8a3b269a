"""Record how much slower the portable reference is than this CPU's kernels: python benchmarks/reference.py -o FILE.

The engine predicts one image; a float32 layer runs forward, and forward with both gradients. Times are CPU times of one
thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from torchadder import create_model, kernels, quantize
from torchadder.engine import Engine
from torchadder.lab import record
from torchadder.nn import AdderConv2d

LAYER = "AdderConv2d(64, 64, 3), 8 images of 16 x 16"


def engine(model: str, isa: str) -> Callable[[], object]:
    """Return a call that predicts one image."""
    torch.manual_seed(0)
    network = create_model(model).eval()
    images = torch.randn(4, *network.input_size)
    with kernels.using(isa):
        made = Engine(quantize(network, [images], method="max"), threads=1)
    return lambda: made(images[:1])


def layer(backward: bool, isa: str) -> Callable[[], object]:
    """Return a call that runs the layer."""
    torch.manual_seed(0)
    module = AdderConv2d(64, 64, 3, padding=1).requires_grad_(backward)
    x = torch.randn(8, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_(backward)

    def run() -> None:
        with kernels.using(isa):
            y = module(x)
            if backward:
                y.sum().backward()

    return run


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of a call, in which other programs of the machine do not count."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record how much slower the portable reference is.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/reference.json")
    parser.add_argument("--repetitions", type=int, default=51)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured: dict[str, Callable[[str], Callable[[], object]]] = {
        "engine, lenet5bn": lambda isa: engine("lenet5bn", isa),
        "engine, resnet20": lambda isa: engine("resnet20", isa),
        f"{LAYER}: forward": lambda isa: layer(False, isa),
        f"{LAYER}: forward and gradients": lambda isa: layer(True, isa),
    }
    rows = []
    for what, make in measured.items():
        runs = {isa: make(isa) for isa in kernels.available()}
        for run in runs.values():
            run()
        found: dict[str, list[float]] = {isa: [] for isa in runs}
        for _ in range(options.repetitions):
            for isa, run in runs.items():
                found[isa].append(seconds(run))
        for isa, times in found.items():
            median = statistics.median(times)
            ratio = statistics.median(slow / fast for slow, fast in zip(found["reference"], times, strict=True))
            rows.append({"what": what, "isa": isa, "seconds": times, "median": median, "ratio": ratio})
            print(f"{what}, {isa}: {1e3 * median:.3f} ms, the reference takes {ratio:.1f} times as long")
    load = os.getloadavg()[0]  # of the machine
    record.write(options.output, record.make("reference", options.repetitions, rows, load=load))
    return 0


if __name__ == "__main__":
    sys.exit(main())

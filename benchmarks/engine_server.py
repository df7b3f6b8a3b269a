"""Record how many images a server of threads or forked processes predicts: python benchmarks/engine_server.py -o FILE.

Each worker predicts one image after the other on an engine of one thread. The ways alternate.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from torchadder import create_model, quantize
from torchadder.engine import Engine
from torchadder.lab import record

SECONDS = 0.1  # of a repetition, about
engines: list[Engine] = []  # forked processes inherit them


def predict(number: int, count: int) -> None:
    """Predict ``count`` images on engine ``number``."""
    engine = engines[number]
    image = torch.zeros(1, *engine.shape, dtype=torch.float32)
    for _ in range(count):
        engine(image)


def measure(model: str, workers: int, repetitions: int) -> list[dict[str, Any]]:
    """Return one row for each way to serve, with its images per second in each repetition."""
    torch.manual_seed(0)
    network = create_model(model).eval()
    engine = Engine(quantize(network, [torch.randn(4, *network.input_size)], method="max"), threads=1)
    engines[:] = [engine, *(copy.copy(engine) for _ in range(workers - 1))]
    count = max(1, round(SECONDS / engine.benchmark()))
    each, same = range(workers), [0] * workers
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(workers) as threads,
        ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as processes,
    ):
        ways: dict[str, tuple[Executor, Sequence[int]]] = {
            "one thread": (one, [0]),
            f"{workers} threads share an engine": (threads, same),
            f"{workers} threads, an engine each": (threads, each),
            f"{workers} forked processes": (processes, each),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for repetition in range(1 + repetitions):
            for way, (pool, numbers) in ways.items():
                start = time.perf_counter()
                list(pool.map(predict, numbers, [count] * len(numbers)))
                if repetition:  # the first one starts threads and processes
                    found[way].append(len(numbers) * count / (time.perf_counter() - start))
    base = found["one thread"]
    return [
        {
            **{"model": model, "way": way, "images_per_second": rates},
            "median": statistics.median(rates),
            "ratio": statistics.median(rate / first for rate, first in zip(rates, base, strict=True)),
        }
        for way, rates in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the throughput of threads and forked processes.")
    parser.add_argument("models", nargs="*", default=["lenet5bn", "resnet20"], metavar="MODEL")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/engine-server.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=51)
    options = parser.parse_args(arguments)
    rows = [row for model in options.models for row in measure(model, options.workers, options.repetitions)]
    for row in rows:
        print(f"{row['model']}, {row['way']}: {row['median']:,.0f} images/s, {row['ratio']:.2f} of one thread")
    load = os.getloadavg()[0]  # of the machine, the workers included
    record.write(options.output, record.make("engine-server", options.repetitions, rows, load=load))
    return 0


if __name__ == "__main__":
    sys.exit(main())

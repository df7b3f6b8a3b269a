"""Record time and exactness of exported networks in ONNX Runtime: python benchmarks/onnx_runtime.py -o FILE.

Rows of "network" have the time of one image on one thread, as AdderNet and as CNN; rows of "body" that of one layer
with other bodies of its function; rows of "difference" the largest one of the logits, relative to the largest logit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from torchadder import AdderConv2d, create_model, list_models, quantize
from torchadder.engine import Engine
from torchadder.export import export_onnx
from torchadder.export.onnx import functions
from torchadder.lab import record
from torchadder.lab.bench.timing import interleaved, medians

IMAGES = 64  # that give batch normalisation its statistics
SMALL = {
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
}  # smaller images than the paper's
CNN = "CNN, ONNX Runtime"
LAYERS = ((16, 16, 32, 3), (64, 64, 8, 3), (64, 64, 32, 3), (512, 512, 7, 1))  # C_in, C_out, side, kernel
CHOSEN = """distance = Abs (difference)
            sum_NG1L = MatMul (ones, distance)
            sum = Squeeze (sum_NG1L, axis_2)"""
BODIES = {  # of the function of AdderConv, in place of CHOSEN; the maximum lacks the sums of x and w that make it right
    "|x - w|, MatMul with ones": CHOSEN,
    "|x - w|, ReduceSum": "distance = Abs (difference) sum = ReduceSum <keepdims: int = 0> (distance, axis_2)",
    "x - w, ReduceL1": "sum = ReduceL1 <keepdims: int = 0> (difference, axis_2)",
    "max(x, w), MatMul with ones": """distance = Identity (difference)
            sum_NG1L = MatMul (ones, distance)
            sum = Squeeze (sum_NG1L, axis_2)""",
}


def call_of(path: Path, images: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that runs an ONNX file on one thread and returns the logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def built(name: str, op: str, size: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights, and the images that its batch normalisation has the statistics of."""
    torch.manual_seed(0)
    model, images = create_model(name, op=op), torch.randn(IMAGES, *size)
    update_bn([images], model)
    return model.eval(), images


def rows_of(what: str, name: str, seconds: Mapping[str, list[float]], base: str) -> list[dict[str, Any]]:
    median = medians(seconds)
    return [
        {
            **{"what": what, "name": name, "candidate": key, "ms": [1e3 * value for value in values]},
            **{"median_ms": 1e3 * median[key], "ratio": median[key] / median[base]},
        }
        for key, values in seconds.items()
    ]


def networks(name: str, repetitions: int, folder: Path) -> list[dict[str, Any]]:
    """Time one image of a network, in float32 and in 8 bits, beside the CNN and the engine."""
    candidates = {}
    for op, title in (("conv", CNN), ("adder", "AdderNet, ONNX Runtime")):
        size = create_model(name).input_size
        model, images = built(name, op, size)
        export_onnx(model, images[:2], folder / f"{op}.onnx")
        candidates[title] = call_of(folder / f"{op}.onnx", images[:1].numpy())
    program = quantize(model, [images[:16]], method="max")
    export_onnx(program, None, folder / "program.onnx")
    candidates["8-bit AdderNet, ONNX Runtime"] = call_of(folder / "program.onnx", images[:1].numpy())
    candidates["8-bit AdderNet, engine"] = partial(Engine(program, threads=1), images[:1])
    candidates["AdderNet, torch"] = partial(model, images[:1])
    with torch.no_grad():
        return rows_of("network", name, interleaved(candidates, repetitions), CNN)


def bodies(layer: tuple[int, int, int, int], repetitions: int, folder: Path) -> list[dict[str, Any]]:
    """Time one image of a layer with each body of its function."""
    c_in, c_out, side, kernel = layer
    images = torch.randn(2, c_in, side, side)
    text = functions.FUNCTIONS["AdderConv"]
    candidates = {}
    for number, (title, body) in enumerate(BODIES.items()):
        changed = text.replace(CHOSEN, body)
        if title.startswith("max"):
            changed = changed.replace("difference = Sub", "difference = Max")
        functions.FUNCTIONS["AdderConv"] = changed
        torch.manual_seed(0)
        export_onnx(AdderConv2d(c_in, c_out, kernel, padding=kernel // 2), images, folder / f"{number}.onnx")
        candidates[title] = call_of(folder / f"{number}.onnx", images[:1].numpy())
    functions.FUNCTIONS["AdderConv"] = text
    name = f"AdderConv2d({c_in}, {c_out}, {kernel}) on {side} x {side}"
    return rows_of("body", name, interleaved(candidates, repetitions), next(iter(BODIES)))


def difference(name: str, folder: Path) -> dict[str, Any]:
    """Compare ONNX Runtime with torch, and torch with itself in float64."""
    model, images = built(name, "adder", SMALL.get(name) or create_model(name).input_size)
    export_onnx(model, images[:2], folder / "net.onnx")
    images = images[:5]
    with torch.no_grad():
        found, logits = torch.from_numpy(call_of(folder / "net.onnx", images.numpy())()), model(images)
        exact = model.double()(images.double())

    def largest(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max() / exact.abs().max())

    about = {"what": "difference", "name": name, "size": list(images.shape)}
    return {**about, "to_torch": largest(found, logits), "torch_to_float64": largest(logits, exact)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record time and exactness of exported networks in ONNX Runtime.")
    parser.add_argument("models", nargs="*", default=["lenet5bn", "resnet20", "vgg_small"], metavar="MODEL")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/onnx-runtime.json")
    parser.add_argument("--repetitions", type=int, default=21)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        timings = [partial(bodies, layer) for layer in LAYERS] + [partial(networks, name) for name in options.models]
        for timing in timings:
            for row in timing(options.repetitions, folder):
                rows.append(row)
                print(f"{row['name']}, {row['candidate']}: {row['median_ms']:.3g} ms, {row['ratio']:.2f}", flush=True)
        for name in list_models():
            rows.append(row := difference(name, folder))
            print(f"{name}: {row['to_torch']:.1e} to torch, which has {row['torch_to_float64']:.1e}", flush=True)
    versions = {"onnxruntime": onnxruntime.__version__}
    load = os.getloadavg()[0]
    record.write(options.output, record.make("onnx-runtime", options.repetitions, rows, versions=versions, load=load))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An experiment: adder layers on unsigned bytes on a GPU, four |x - w| an instruction (VABSDIFF4).

    python benchmarks/gpu_u8.py                    # on a machine with an NVIDIA GPU: results/gpu-u8.json

Sums of 32 bits, no requantisation. Beside it the float32 forward pass and cuDNN's convolution in float32 and bfloat16,
whose tensor cores multiply; all channels-last, in the same run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder import ops
from torchadder.lab.bench import record
from torchadder.lab.bench.devices import Gpu
from torchadder.lab.bench.layers import LayerShape, layers_of
from torchadder.lab.bench.timing import interleaved, medians
from torchadder.ops.gpu import cuda

ROOT = Path(__file__).resolve().parent.parent
MODELS, BATCH, REPETITIONS = ("resnet20", "resnet18", "resnet50"), 128, 11


def words(bytes_: Tensor) -> Tensor:
    """(N, C, H, W) bytes, channels-last, as (N, C / 4, H, W) words."""
    dense = bytes_.movedim(1, -1).clone(memory_format=torch.contiguous_format)  # (1x1 views are called contiguous)
    return dense.view(torch.int32).movedim(-1, 1)


def measure(shape: LayerShape, place: Gpu) -> dict[str, object]:
    last = torch.channels_last
    sizes = ((BATCH, shape.c_in, shape.size, shape.size), (shape.c_out, shape.c_in, shape.kernel, shape.kernel))
    codes = [torch.randint(256, size, dtype=torch.uint8, device=place.device) for size in sizes]
    x, weight = (t.float().contiguous(memory_format=last) for t in codes)
    found = cuda.forward(words(codes[0]), words(codes[1]), None, shape.geometry, last)
    if not torch.equal(found.float(), ops.adder_conv(x, weight, None, shape.geometry, False)):  # exact in both
        raise RuntimeError(f"{shape}: the sums of bytes are not those of float32")
    calls = {
        "adder u8": partial(cuda.forward, words(codes[0]), words(codes[1]), None, shape.geometry, last),
        "adder fp32": partial(ops.adder_conv, x, weight, None, shape.geometry, False),
        "conv fp32": partial(F.conv2d, x, weight, None, *shape.geometry),
        "conv bf16": partial(F.conv2d, x.bfloat16(), weight.bfloat16(), None, *shape.geometry),
    }
    with place.in_use(), torch.no_grad():
        seconds = interleaved(calls, REPETITIONS, place.clock(flush=True))
    rates = {name: shape.operations(BATCH) / median / 1e9 for name, median in medians(seconds).items()}
    return {"layer": str(shape), "batch": BATCH, "seconds": seconds, "giga_ops": rates}


def main() -> None:
    place = Gpu(torch.device("cuda", torch.cuda.current_device()))
    shapes = dict.fromkeys(shape for model in MODELS for shape in layers_of(model))
    rows = []
    for shape in shapes:
        rows.append(row := measure(shape, place))
        print(row["layer"], *(f"{name} {rate:,.0f}" for name, rate in row["giga_ops"].items()), sep="  ")
    made = record.make("gpu-u8", REPETITIONS, rows, place.device)
    record.write(ROOT / "results" / "gpu-u8.json", made)


if __name__ == "__main__":
    main()

"""Every kind of layer against its torch twin, as modules: the forward pass with gradients on, and a whole step.

Where torch is quick for lack of work (a tiny input) or slow for lack of a kernel (groups), so should we be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchadder import nn as ours

from .layers import Calls
from .timing import interleaved, medians, threads

PASSES = ("forward", "step")  # step: forward, and the gradients of input and weight
KINDS = {1: (ours.AdderConv1d, nn.Conv1d), 2: (ours.AdderConv2d, nn.Conv2d), 3: (ours.AdderConv3d, nn.Conv3d)}
LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class LayerCase:
    """A layer of one, two or three dimensions, square in all of them, and an input for it."""

    what: str
    batch: int
    c_in: int
    c_out: int
    kernel: int
    size: tuple[int, ...]
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        groups = "" if self.groups == 1 else f", {self.groups} groups"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        axes, places = "x".join([str(self.kernel)] * len(self.size)), "x".join(map(str, self.size))
        return f"{self.what}: {self.c_in}->{self.c_out} {axes}{stride}{groups} on {self.batch}x{self.c_in}x{places}"

    def layers(self) -> dict[str, nn.Module]:
        """The adder layer and its twin, with a bias as by default."""
        options: dict[str, Any] = {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}
        adder, conv = KINDS[len(self.size)]
        return {
            "adder": adder(self.c_in, self.c_out, self.kernel, **options),
            "conv": conv(self.c_in, self.c_out, self.kernel, **options),
        }


CASES = (
    LayerCase("tiny", 1, 8, 8, 3, (4, 4)),
    LayerCase("tiny 1x1", 1, 8, 8, 1, (4, 4)),
    LayerCase("1-d", 16, 64, 64, 9, (256,)),
    LayerCase("1-d, strided", 8, 32, 64, 16, (1024,), stride=4),
    LayerCase("1-d, depthwise", 16, 128, 128, 7, (256,), groups=128),
    LayerCase("3-d", 4, 16, 32, 3, (8, 16, 16)),
    LayerCase("3-d", 2, 64, 64, 3, (8, 8, 8)),
    LayerCase("3-d, stem", 4, 3, 32, 3, (16, 32, 32), stride=2),
    LayerCase("3-d, depthwise", 4, 64, 64, 3, (8, 8, 8), groups=64),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=2),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=4),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=8),
    LayerCase("grouped", 16, 64, 64, 3, (16, 16), groups=16),
    LayerCase("grouped, ResNeXt", 8, 128, 128, 3, (28, 28), groups=32),
    LayerCase("grouped, ShuffleNet", 16, 60, 60, 1, (28, 28), groups=3),
    LayerCase("2 filters a channel", 16, 32, 64, 3, (28, 28), groups=32),
    LayerCase("depthwise", 16, 64, 64, 3, (28, 28), groups=64),
    LayerCase("depthwise, strided", 16, 64, 64, 3, (28, 28), stride=2, groups=64),
    LayerCase("depthwise, ConvNeXt", 8, 96, 96, 7, (28, 28), groups=96),
)


def measure(
    cases: Iterable[LayerCase], thread_counts: Iterable[int], repetitions: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row for each case, number of threads and pass: seconds of each side in each memory format.

    `ratio` is the adder's median over torch's, each side in its better format.
    """
    rows = []
    for case in cases:
        for count in thread_counts:
            for which in PASSES:
                progress(f"{case}, {count} threads, {which}")
                with threads(count):
                    seconds = interleaved(candidates(case, which), repetitions)
                middle = medians(seconds)
                best = {
                    side: min(value for name, value in middle.items() if name.startswith(side))
                    for side in ("adder", "conv")
                }
                about = {"layer": str(case), "threads": count, "pass": which, "seconds": seconds}
                milliseconds = {f"{side}_ms": value * 1e3 for side, value in best.items()}
                rows.append({**about, **milliseconds, "ratio": best["adder"] / best["conv"]})
    return rows


def candidates(case: LayerCase, which: str) -> Calls:
    """What is timed: both layers, each with input and weight in either memory format."""
    calls: Calls = {}
    x = torch.randn(case.batch, case.c_in, *case.size, generator=torch.Generator().manual_seed(0)).relu()
    for layout in dict.fromkeys((torch.contiguous_format, LAST[len(case.size)])):
        image = x.contiguous(memory_format=layout)
        for side, layer in case.layers().items():
            layer.to(memory_format=layout)  # type: ignore[call-overload]
            if which == "forward":
                calls[f"{side} {layout}"] = partial(layer, image)
            else:
                wanted = image.clone().requires_grad_()
                calls[f"{side} {layout}"] = partial(_step, layer, wanted, torch.ones_like(layer(wanted)))
    return calls


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)

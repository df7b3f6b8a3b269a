"""Calibration: what the values of a network look like on real images, and the range that codes should cover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx

Method = Literal["mse", "max", "percentile"]
METHODS = get_args(Method)
BINS = 2048
PERCENTILE = 0.9999


@dataclass
class Statistics:
    """Of one value over all images: the least and largest of each channel (C,), and counts in BINS between them."""

    low: Tensor
    high: Tensor
    histogram: Tensor

    def range(self, method: Method, levels: int = 255) -> tuple[float, float]:
        """The low and high that codes should cover, 0 within. See quantize."""
        low, high = min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)
        if method == "max" or low == high:
            return low, high
        if method == "percentile":
            return self._percentile(low, high)
        shares = [i / 100 for i in range(20, 101)]
        best = min(shares, key=lambda share: self._error(low * share, high * share, levels))
        return low * best, high * best

    def _centres(self) -> Tensor:
        low, high = float(self.low.min()), float(self.high.max())
        return low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS

    def _error(self, low: float, high: float, levels: int) -> float:
        """Sum of squared errors if codes cover low..high."""
        values = self._centres()
        step = (high - low) / levels
        rounded = ((values / step).round() * step).clamp(low, high)
        return float((self.histogram * (values - rounded) ** 2).sum())

    def _percentile(self, low: float, high: float) -> tuple[float, float]:
        share = self.histogram.cumsum(0) / self.histogram.sum()
        values = self._centres()
        below, above = values[share >= 1 - PERCENTILE][0], values[share >= PERCENTILE][0]
        return max(low, min(float(below), 0.0)), min(high, max(float(above), 0.0))


class _Recorder(fx.Interpreter):
    """Runs a graph and calls ``look`` with the name and value of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = value
        return value


def observe(module: fx.GraphModule, batches: Iterable[Tensor]) -> dict[str, Statistics]:
    """Statistics of every value of ``module`` over ``batches`` of images, by the name of its node."""
    batches = list(batches)
    found: dict[str, Statistics] = {}
    for values in _values(module, batches):
        for name, value in values.items():
            low, high = value.amin(0), value.amax(0)
            if name not in found:
                found[name] = Statistics(low, high, torch.zeros(BINS, dtype=torch.float64))
            known = found[name]
            known.low, known.high = known.low.minimum(low), known.high.maximum(high)
    for values in _values(module, batches):
        for name, value in values.items():
            known = found[name]
            least, largest = float(known.low.min()), float(known.high.max())
            if least < largest:
                known.histogram += torch.histc(value, BINS, least, largest).double()
    return found


@torch.no_grad()
def _values(module: fx.GraphModule, batches: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
    """For each batch the values by name, channels last: (numbers, C)."""
    for batch in batches:
        recorder = _Recorder(module)
        recorder.run(batch)
        yield {
            name: value.float().movedim(1, -1).flatten(0, -2)
            for name, value in recorder.found.items()
            if value.dim() > 1
        }

"""Observe the values of a network on real images, and choose the range that the quantized values should cover."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx

from torchadder.errors import UserError, shortened
from torchadder.quant.graph import Network, kind_of

Method = Literal["mse", "max", "percentile"]
METHODS = get_args(Method)
BINS = 2048  # of a histogram: eight for each of 256 quantized values
SEVERAL = 10  # images, too many to be all of one class by chance
PERCENTILE = 0.9999  # leaves out 0.01% of the numbers at either end


@dataclass
class Statistics:
    """Hold the least and largest number of each channel, (C,), and a histogram of all numbers, float64 (BINS,).

    The bins divide the range from the least to the largest number of all channels.
    """

    low: Tensor
    high: Tensor
    histogram: Tensor

    def range(self, method: Method, qmax: int = 255) -> tuple[float, float]:
        """Return the range low <= 0 <= high that 0..qmax should cover. See torchadder.quantize for the methods."""
        low, high = min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)
        if method == "max" or not self.histogram.any():  # it is empty where all numbers are equal
            return low, high
        if method == "percentile":
            return self._percentile(low, high)
        shares = [i / 100 for i in range(20, 101)]  # of the observed range: the candidates
        best = min(shares, key=lambda share: self._squared_error(low * share, high * share, qmax))
        return low * best, high * best

    def _centres(self) -> Tensor:
        low, high = float(self.low.min()), float(self.high.max())
        return low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS

    def _squared_error(self, low: float, high: float, qmax: int) -> float:
        """Return the sum of squared rounding errors if 0..qmax cover low..high."""
        values = self._centres()
        scale = (high - low) / qmax
        rounded = ((values / scale).round() * scale).clamp(low, high)
        return float((self.histogram * (values - rounded) ** 2).sum())

    def _percentile(self, low: float, high: float) -> tuple[float, float]:
        share = self.histogram.cumsum(0) / self.histogram.sum()
        values = self._centres()
        below, above = values[share >= 1 - PERCENTILE][0], values[share >= PERCENTILE][0]
        return max(low, min(float(below), 0.0)), min(high, max(float(above), 0.0))


def image_batches(calibration: Tensor | Iterable[Any]) -> list[Tensor]:
    """Return the batches of images in ``calibration``: one batch, batches, or tuples (images, ...) as a loader has.

    Raises UserError where they are no images float (N, C, H, W), (N, C, L) or (N, C) of one size and dtype.
    """
    is_one = isinstance(calibration, Tensor) or not isinstance(calibration, Iterable)
    batches: list[Any] = [calibration] if is_one else list(calibration)
    batches = [batch[0] if isinstance(batch, (tuple, list)) and batch else batch for batch in batches]
    kinds = list(dict.fromkeys(map(kind_of, batches)))
    if len(kinds) != 1 or not all(
        isinstance(batch, Tensor) and 2 <= batch.dim() <= 4 and len(batch) and batch.is_floating_point()
        for batch in batches
    ):
        found = shortened(kinds, shown=2) or "nothing"
        raise UserError(f"calibration: expected tensors of images (N, C, H, W), float, of one size; got {found}")
    return batches


class Recorder(fx.Interpreter):
    """Run a captured network, and keep the values of the nodes whose names are in ``names``."""

    def __init__(self, network: Network, names: Container[str]):
        super().__init__(network.module)
        self.network, self.names = network, names
        self.found: dict[str, Tensor] = {}
        self.logits = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        self.found = {}
        self.logits = self.run(*self.network.inputs(images))
        return self.logits

    def run_node(self, n: fx.Node) -> Any:
        value = self.compute(n)
        if n.name in self.names:
            self.found[n.name] = value
        return value

    def compute(self, n: fx.Node) -> Any:
        """Return the value of one node."""
        return super().run_node(n)


def observe(recorder: Recorder, batches: Sequence[Tensor]) -> dict[str, Statistics]:
    """Return the statistics over ``batches`` of images of the values that are recorded, by the name of their node.

    Warns where the network gives one class to all of SEVERAL images or more. Raises UserError for values that are not
    finite.
    """
    found: dict[str, Statistics] = {}
    answers: set[int] = set()
    for number, values in enumerate(_values(recorder, batches), 1):
        where = f"look at batch {number} of {len(batches)}"
        answers |= {*recorder.logits.flatten(1).argmax(1).tolist()}
        for name, value in values.items():
            low, high = value.amin(0).cpu(), value.amax(0).cpu()
            if not bool((low.isfinite() & high.isfinite()).all()):
                place = recorder.network.place_of(name)
                raise UserError(f"calibration meets NaN or infinite numbers in {place}: {where}")
            if name not in found:
                found[name] = Statistics(low, high, torch.zeros(BINS, dtype=torch.float64, device="cpu"))
            known = found[name]
            known.low, known.high = known.low.minimum(low), known.high.maximum(high)
        if not bool(recorder.logits.isfinite().all()):
            raise UserError(f"calibration meets NaN or infinite numbers in the logits: {where}")
    count = sum(map(len, batches))
    if len(answers) == 1 < recorder.logits[0].numel() and count >= SEVERAL:
        warnings.warn(
            f"the network gives all {count} calibration images class {answers.pop()}: a classifier needs images of "
            "several classes, prepared as in training (size, mean, std)",
            stacklevel=3,
        )
    for values in _values(recorder, batches):
        for name, value in values.items():
            known = found[name]
            least, largest = float(known.low.min()), float(known.high.max())
            if least < largest:
                known.histogram += torch.histc(value, BINS, least, largest).double().cpu()
    return found


@torch.no_grad()
def _values(recorder: Recorder, batches: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield for each batch the values by name, float32 (numbers, C); all axes but the channels are flattened."""
    for batch in batches:
        recorder(batch)
        yield {name: value.float().movedim(1, -1).flatten(0, -2) for name, value in recorder.found.items()}

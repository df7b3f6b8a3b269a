"""Draw layer outputs before normalisation, raw and recentred: the reason why 16-bit training needs recentring.

The outputs of an adder layer are negative and large, but only their variation about the channel mean carries
information: the normalisation that follows subtracts the mean. |mean| / std of a channel says how much larger the
mean is. Recentring adds the constant sum |W| of each filter and leaves a mean that 16-bit numbers can represent.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchadder.data import StreamedSplit, open_batches
from torchadder.lab.figures.drawing import COLOURS, INK, MARKERS, histogram, legend_beside, rows_and_layers
from torchadder.lab.runs import FigureInputs, TrainedRun, several_networks
from torchadder.lab.weights import kind_of, weighted_layers
from torchadder.nn import Adder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = 1 << 18  # number of input pixels per channel: 256 images of 32 x 32
RAW, RECENTRED = "raw", "recentred"
FORMS = {RAW: COLOURS[1], RECENTRED: COLOURS[0]}


def unsupported(runs: list[TrainedRun]) -> str | None:
    return several_networks(runs)


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return ``layer_outputs`` of each run over test images, and ``numbers`` over the layers of its own operator."""
    panels = []
    for title, run in inputs:
        inputs.progress(f"outputs: {title}", 0, 1)
        images = _images(inputs, run)
        layers = layer_outputs(run.model(), images)
        numbers = _overall([layer for layer in layers if layer["kind"] == run.recipe.op])
        panels.append({"title": title, "images": len(images), "numbers": numbers, "layers": layers})
        inputs.progress(f"outputs: {title}", 1, 1)
    return {"panels": panels}


def layer_outputs(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Measure the output of each convolution and linear layer for ``images``, in order of definition.

    Each layer has an entry "raw", and an adder layer also "recentred": the histogram of the middle 99.8% of the
    values, and for each channel that varies ``spread``, |mean| / std over images and positions, and ``rounding``, the
    root mean square error of rounding to bfloat16, divided by the std.
    """
    found: dict[str, dict[str, Any]] = {}

    def record(name: str, layer: Any, inputs: Any, output: Tensor) -> None:
        found[name] = {"name": name, "kind": kind_of(layer)}
        channels = output.transpose(0, 1).flatten(1)  # (C, images and positions)
        if not isinstance(layer, Adder):
            found[name][RAW] = _statistics(channels)
            return
        constant = layer.weight.abs().flatten(1).sum(1, keepdim=True)  # type: ignore[operator]
        found[name][RAW] = _statistics(channels - constant if layer.recenter else channels)
        found[name][RECENTRED] = _statistics(channels if layer.recenter else channels + constant)

    layers = weighted_layers(model)
    handles = [layer.register_forward_hook(partial(record, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in layers if name in found]


def _statistics(channels: Tensor) -> dict[str, Any]:
    std, mean = torch.std_mean(channels.double(), dim=1)
    errors = (channels.bfloat16().double() - channels).square().mean(1).sqrt()
    varies = std > 0
    return {
        **histogram(channels),
        "spread": (mean.abs() / std)[varies].tolist(),
        "rounding": (errors / std)[varies].tolist(),
    }


def _overall(layers: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return median and largest ``spread`` and median ``rounding`` over all channels of ``layers``, for each form."""
    numbers = {}
    for form in (RAW, RECENTRED):
        spreads = [value for layer in layers if form in layer for value in layer[form]["spread"]]
        errors = [value for layer in layers if form in layer for value in layer[form]["rounding"]]
        if spreads:
            median, largest = statistics.median(spreads), max(spreads)
            numbers[form] = {"median": median, "largest": largest, "rounding": statistics.median(errors)}
    return numbers


def _images(inputs: FigureInputs, run: TrainedRun) -> Tensor:
    test = inputs.dataset(run).test
    size = test.size if isinstance(test, StreamedSplit) else test.pixels.shape[-1]
    return next(iter(open_batches(test, max(16, PIXELS // size**2), workers=0)))[0]


def describe(data: dict[str, Any]) -> str:
    parts = []
    for panel in data["panels"]:
        forms = [
            f"{form} {numbers['median']:.3g} (largest {numbers['largest']:.3g}), "
            f"rounding to bfloat16 costs {numbers['rounding']:.2g} std"
            for form, numbers in panel["numbers"].items()
        ]
        parts.append(f"{panel['title']}: {'; '.join(forms)}")
    return "|mean| / std of a channel, median: " + "; ".join(parts)


def draw(data: dict[str, Any]) -> Figure:
    panels = data["panels"]
    series = {
        f"{panel['title']}, {form}": (number, form) for number, panel in enumerate(panels) for form in panel["numbers"]
    }
    figure, axes = rows_and_layers(panels, 1.6, list(series), _histogram)
    for place, (label, (number, form)) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * 0.5 / len(series)
        _spreads(axes, panels[number]["layers"], form, shift, MARKERS[number % len(MARKERS)], label)
    axes.set_yscale("log")
    axes.set_title("|mean| / std of a layer's channels: median (mark) to largest (line)", loc="left")
    legend_beside(axes)
    return figure


def _spreads(axes: Axes, layers: list[dict[str, Any]], form: str, shift: float, marker: str, label: str) -> None:
    """Draw the median (mark) and the largest (line) |mean| / std of each layer's channels."""
    found = {place: layer[form]["spread"] for place, layer in enumerate(layers) if layer.get(form, {}).get("spread")}
    x = [place + shift for place in found]
    medians = [statistics.median(spread) for spread in found.values()]
    axes.vlines(x, medians, [max(spread) for spread in found.values()], color=FORMS[form], linewidth=1)
    axes.plot(x, medians, marker, color=FORMS[form], markersize=5, label=label)


def _histogram(axes: Axes, layer: dict[str, Any]) -> None:
    for form, colour in FORMS.items():
        if form in layer:
            axes.stairs(layer[form]["density"], layer[form]["edges"], fill=True, color=colour, alpha=0.7)
    axes.axvline(0, color=INK, linewidth=0.6, linestyle=":")
    axes.set_title(layer["name"], loc="left", fontsize=8)

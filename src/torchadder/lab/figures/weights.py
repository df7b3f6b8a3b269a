"""Draw the weights of each layer as a histogram, with the Laplace and the Gaussian density that fit best.

The paper finds that the weights of an AdderNet follow a Laplace density and those of a CNN a Gaussian. For the weights
of a run, the density with the larger likelihood decides.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchadder.lab.figures.drawing import (
    COLOURS,
    INK,
    MARKERS,
    histogram,
    legend_beside,
    line_style,
    rows_and_layers,
)
from torchadder.lab.runs import FigureInputs, TrainedRun, several_networks
from torchadder.lab.weights import GAUSSIAN, LAPLACE, Fit, LayerWeights, fits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PATTERNS = {"adder": LAPLACE, "conv": GAUSSIAN}  # in the paper


def unsupported(runs: list[TrainedRun]) -> str | None:
    return several_networks(runs)


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return for each layer of each run both fits and the histogram of the middle 99.8%, as a density of all weights.

    ``better`` counts for each density the layers of the network's own operator in which it is likelier. ``gain`` is
    the mean over these layers of the Laplace's log-likelihood minus the Gaussian's, in nats per weight.
    """
    panels = []
    for title, run in inputs:
        layers = fits(run.model())
        own = [layer for layer in layers if layer.kind == run.recipe.op]
        better = {name: sum(layer.better.name == name for layer in own) for name in (LAPLACE, GAUSSIAN)}
        gain = sum(layer.laplace.log_likelihood - layer.gaussian.log_likelihood for layer in own) / len(own)
        numbers = {"better": better, "gain": gain}
        panels.append({"title": title, "op": run.recipe.op, **numbers, "layers": [_layer(layer) for layer in layers]})
    return {"panels": panels}


def _layer(layer: LayerWeights) -> dict[str, Any]:
    found: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "weights": len(layer.values)}
    for fit in (layer.laplace, layer.gaussian):
        found[fit.name.lower()] = {name: value for name, value in fit._asdict().items() if name != "name"}
    return {**found, **histogram(layer.values)}


def describe(data: dict[str, Any]) -> str:
    parts = []
    for panel in data["panels"]:
        better = panel["better"]
        name = max(better, key=better.__getitem__)
        nats = panel["gain"] if name == LAPLACE else -panel["gain"]
        parts += [
            f"{panel['title']}: {name} likelier in {better[name]} of {sum(better.values())} layers, "
            f"on average by {nats:+.3f} nats a weight"
        ]
    return "; ".join(parts) + _verdict(data["panels"])


def _verdict(panels: list[dict[str, Any]]) -> str:
    wrong = []
    for panel in panels:
        better, expected = panel["better"], PATTERNS.get(panel["op"])
        if expected and 2 * better[expected] <= sum(better.values()):
            wrong.append(f"most layers of {panel['title']} are not {expected}-like")
    if wrong:
        return ". Not as in the paper: " + ", ".join(wrong)
    return ". As in the paper" if any(panel["op"] in PATTERNS for panel in panels) else ""


def draw(data: dict[str, Any]) -> Figure:
    panels = data["panels"]
    figure, axes = rows_and_layers(panels, 1.9, [panel["title"] for panel in panels], _histogram)
    for number, panel in enumerate(panels):
        gains = [layer["laplace"]["log_likelihood"] - layer["gaussian"]["log_likelihood"] for layer in panel["layers"]]
        style = line_style(number) | {"linestyle": "none"}
        axes.plot(gains, marker=MARKERS[number % len(MARKERS)], markersize=5, label=panel["title"], **style)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("nats a weight")
    axes.set_title(
        "log-likelihood of the Laplace less that of the Gaussian: above 0 the Laplace fits better", loc="left"
    )
    legend_beside(axes)
    return figure


def _histogram(axes: Axes, layer: dict[str, Any]) -> None:
    edges = torch.tensor(layer["edges"], dtype=torch.float64)
    axes.stairs(layer["density"], layer["edges"], fill=True, color="#D0D0D0")
    x = torch.linspace(edges[0].item(), edges[-1].item(), 400, dtype=torch.float64)
    for number, (name, dashes) in enumerate(((LAPLACE, "-"), (GAUSSIAN, "--"))):
        fit = Fit(name, **layer[name.lower()])
        label = f"{fit.name} {fit.log_likelihood:.3f}"
        axes.plot(x, fit.density(x), dashes, color=COLOURS[1 - number], linewidth=1.2, label=label)
    axes.set_title(f"{layer['name']}\n{layer['weights']:,} weights", loc="left", fontsize=8)
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # leaves room for the legend
    axes.legend(loc="upper left", fontsize=7, handlelength=1.2, borderaxespad=0, labelcolor=INK)

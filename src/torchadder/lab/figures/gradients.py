"""Draw the l2-norms of the gradients of each layer's filters by iteration, beside the table of the paper.

A run directory does not store gradients, so the first iterations are trained again by the training loop, from the
recipe and its seed. The norms are those right after backward, before clipping and before ALR or ILR rescales.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchadder.lab.figures.drawing import CLASS_COLOURS, INK, canvas, wrapped
from torchadder.lab.runs import FigureInputs, TrainedRun, several_networks
from torchadder.lab.weights import kind_of, weighted_layers
from torchadder.models import Model
from torchadder.train import Progress, Recipe, Run, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = {  # norms in the first iteration of LeNet-5-BN, quoted at second hand
    "adder": {"conv1": 0.0009, "conv2": 0.0012, "conv3": 0.0146},
    "conv": {"conv1": 0.2261, "conv2": 0.2990, "conv3": 0.4646},
}
COMPARED = 3  # number of layers in the paper's table
MANY = 10  # With more layers, colours come from a continuous scale.


def unsupported(runs: list[TrainedRun]) -> str | None:
    return several_networks(runs)


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return for each layer of each run ``norms``, one per iteration, and ``paper``, the published norm or None."""
    panels = []
    for title, run in inputs:
        norms = replay(run, inputs.iterations, inputs.data_dir, partial(inputs.progress, f"gradients: {title}"))
        paper = PAPER.get(run.recipe.op, {}) if run.recipe.model == "lenet5bn" else {}
        kinds = {name: kind_of(layer) for name, layer in weighted_layers(run.model()).items()}
        layers = [{"name": n, "kind": kinds[n], "paper": paper.get(n), "norms": norms[n]} for n in norms]
        panels.append({"title": title, "op": run.recipe.op, "layers": layers})
    return {"panels": panels}


def replay(
    run: TrainedRun, iterations: int, data_dir: Path | None, progress: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Train the first ``iterations`` of ``run`` again (all if it has fewer) and return the norms by layer.

    ``progress`` is called with the iterations that are done and their total. Nothing is written, and one process is
    used even if the run was distributed. Raises UserError if the data set cannot be loaded.
    """
    again = Run(run.folder, run.recipe, None)
    again.writes = False
    recorder = _Recorder(iterations, progress)
    with suppress(_FinishedError):
        train(again, data_dir=data_dir, progress=recorder)
    return recorder.norms


class _FinishedError(Exception):
    """Stop the training loop: all wanted iterations are done."""


class _Recorder(Progress):
    """Record the norm of each weight's gradient as soon as backward has finished it."""

    def __init__(self, iterations: int, progress: Callable[[int, int], None]):
        self.norms: dict[str, list[float]] = {}
        self._iterations, self._progress = iterations, progress

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_per_epoch: int) -> None:
        self._iterations = min(self._iterations, recipe.epochs * steps_per_epoch)
        for name, layer in weighted_layers(model).items():
            self.norms[name] = []
            hook = partial(self._record, self.norms[name], recipe.accumulate, [0])
            layer.weight.register_post_accumulate_grad_hook(hook)  # type: ignore[operator]
        self._progress(0, self._iterations)

    def _record(self, norms: list[float], parts: int, seen: list[int], weight: Tensor) -> None:
        seen[0] += 1
        if seen[0] % parts:  # The gradients of the other parts of the batch are not added yet.
            return
        norms.append(weight.grad.norm().item())  # type: ignore[union-attr]
        done = min(map(len, self.norms.values()))
        if done == len(norms):  # This was the last layer of the iteration.
            self._progress(done, self._iterations)
            if done == self._iterations:
                raise _FinishedError


def describe(data: dict[str, Any]) -> str:
    panels = data["panels"]
    names = _compared(panels)
    parts = []
    for panel in panels:
        layers = [layer for layer in panel["layers"] if layer["name"] in names]
        first = _row(layer["norms"][0] for layer in layers)
        published = [layer["paper"] for layer in layers]
        paper = f" (paper {_row(published)})" if all(published) else ""
        median = _row(statistics.median(layer["norms"]) for layer in layers)
        count = len(layers[0]["norms"])
        parts += [f"{panel['title']}: {first} in the first iteration{paper}, median of {count} {median}"]
    return f"{', '.join(names)} of " + "; ".join(parts) + _verdict(panels, names)


def _row(norms: Iterable[float]) -> str:
    return " / ".join(f"{norm:.4f}" for norm in norms)


def _compared(panels: list[dict[str, Any]]) -> list[str]:
    """Return the names of the first layers that have the network's own operator in every run."""
    own = [{layer["name"] for layer in panel["layers"] if layer["kind"] == panel["op"]} for panel in panels]
    return [layer["name"] for layer in panels[0]["layers"] if all(layer["name"] in names for names in own)][:COMPARED]


def _verdict(panels: list[dict[str, Any]], names: list[str]) -> str:
    """Return a sentence that says if AdderNets have smaller first gradients than CNNs, as in the paper's table."""
    first: dict[str, dict[str, list[float]]] = {op: {name: [] for name in names} for op in PAPER}
    for panel in panels:
        for layer in panel["layers"]:
            if panel["op"] in first and layer["name"] in names:
                first[panel["op"]][layer["name"]].append(layer["norms"][0])
    if not {"adder", "conv"} <= {panel["op"] for panel in panels}:
        return ""
    smaller = sum(max(first["adder"][name]) < min(first["conv"][name]) for name in names)
    if smaller == len(names):
        return ". As in the paper: an AdderNet's are smaller than a CNN's in each of these layers"
    return f". Not as in the paper: an AdderNet's are smaller than a CNN's in {smaller} of these {len(names)} layers"


def draw(data: dict[str, Any]) -> Figure:
    panels = data["panels"]
    figure = canvas(0.6 + 3.9 * len(panels) + 1.2, 3.6)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        _panel(axes, panel)
    row[0].set_ylabel("l2-norm of the gradient of the filters")
    row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _panel(axes: Axes, panel: dict[str, Any]) -> None:
    import matplotlib

    layers = panel["layers"]
    many = len(layers) > MANY
    scale = matplotlib.colormaps["viridis"]
    for number, layer in enumerate(layers):
        colour: Any = scale(number / (len(layers) - 1)) if many else CLASS_COLOURS[number % len(CLASS_COLOURS)]
        named = not many or number in (0, len(layers) // 2, len(layers) - 1)
        norms = layer["norms"]
        axes.plot(range(1, len(norms) + 1), norms, color=colour, linewidth=1, label=layer["name"] if named else None)
        if layer["paper"]:
            axes.plot(1, layer["paper"], "D", color=colour, markeredgecolor="white", markersize=6, clip_on=False)
    if any(layer["paper"] for layer in layers):
        axes.plot([], [], "D", color=INK, markersize=5, label="paper, first iteration")
    axes.set_yscale("log")
    axes.grid(axis="y")
    axes.set_xlabel("iteration")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(wrapped(panel["title"], 44), loc="left")

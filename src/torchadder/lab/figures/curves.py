"""Draw learning curves: loss and accuracy by epoch, for example of the four optimisation schemes of the paper.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torchadder.lab.figures.drawing import canvas, line_style, log_scale, wrapped
from torchadder.lab.runs import FigureInputs, TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = ("train_loss", "test_loss", "test_accuracy")
TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)  # of an accuracy axis that is logarithmic in the error


def unsupported(runs: list[TrainedRun]) -> str | None:
    return None


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return the metrics of each epoch: losses in nats per image, accuracies in percent."""
    curves = []
    for title, run in inputs:
        epochs = {"epoch": [row["epoch"] for row in run.metrics]}
        epochs |= {name: [_finite(row.get(name)) for row in run.metrics] for name in SHOWN}
        curves.append({"title": title, "dataset": run.recipe.dataset, "epochs": run.recipe.epochs, **epochs})
    return {"curves": curves}


def describe(data: dict[str, Any]) -> str:
    return "test accuracy: " + "; ".join(
        f"{curve['title']} {_percent(curve['test_accuracy'][-1])} after epoch {curve['epoch'][-1]}"
        for curve in data["curves"]
    )


def draw(data: dict[str, Any]) -> Figure:
    curves = data["curves"]
    figure = canvas(10.5, 3.3 + 0.17 * math.ceil(len(curves) / 2))
    losses, tests, accuracies = figure.subplots(1, 3)
    for axes, name, label in ((losses, "train_loss", "training loss"), (tests, "test_loss", "test loss")):
        _lines(axes, curves, name)
        shown = _shown(curves, name)
        if shown and min(shown) > 0 and max(shown) > 10 * min(shown):
            log_scale(axes)
            label += ", log scale"
        axes.set_title(label, loc="left")
    _lines(accuracies, curves, "test_accuracy")
    accuracies.set_title("test accuracy, %", loc="left")
    _stretch(accuracies, _shown(curves, "test_accuracy"))
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(curves)))
    return figure


def _lines(axes: Axes, curves: list[dict[str, Any]], name: str) -> None:
    for number, curve in enumerate(curves):
        values = [math.nan if value is None else value for value in curve[name]]
        marker = "o" if len(values) < 5 else None
        axes.plot(
            curve["epoch"], values, label=wrapped(curve["title"], 70), marker=marker, markersize=3, **line_style(number)
        )
    axes.set_xlabel("epoch")
    axes.grid(axis="y")
    axes.locator_params(axis="x", integer=True)


def _stretch(axes: Axes, accuracies: list[float]) -> None:
    """Scale the axis logarithmically in the error, so that 98 to 99% is as far as 80 to 90%."""
    errors = [100 - accuracy for accuracy in accuracies if accuracy < 100]
    if not errors or max(errors) < 10 * min(errors):
        return
    least = min(errors) / 1.5  # An accuracy of 100% has no logarithm; it is drawn here.
    axes.set_yscale("function", functions=(lambda a: -_log(100 - a, least), lambda y: 100 - 10.0 ** (-y)))
    low, high = 100 - max(errors) * 1.1, 100 - least
    axes.set_ylim(max(low, 0), high)
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.yaxis.set_major_formatter("{x:g}")


def _log(errors: Any, least: float) -> Any:
    import numpy as np

    return np.log10(np.maximum(errors, least))


def _shown(curves: list[dict[str, Any]], name: str) -> list[float]:
    return [value for curve in curves for value in curve[name] if value is not None]


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}%"

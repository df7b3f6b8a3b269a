"""Draw the filters of the first layer, those of an AdderNet beside those of a CNN.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchadder.lab.figures.drawing import FAINT, canvas, wrapped
from torchadder.lab.runs import FigureInputs, TrainedRun, several_networks
from torchadder.lab.weights import weighted_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 1  # pixels between filters


def unsupported(runs: list[TrainedRun]) -> str | None:
    return several_networks(runs)


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return ``weight`` of each run's first layer, (C_out, C_in, kh, kw); all models here begin with a convolution."""
    panels = []
    for title, run in inputs:
        name, layer = next(iter(weighted_layers(run.model()).items()))
        weight = layer.weight.detach()  # type: ignore[operator]
        about = {"layer": name, "largest": weight.abs().max().item(), "weight": weight.tolist()}
        panels.append({"title": title, **about})
    return {"panels": panels}


def describe(data: dict[str, Any]) -> str:
    outputs, _, rows, columns = torch.tensor(data["panels"][0]["weight"]).shape
    largest = "; ".join(f"{panel['title']}: {panel['largest']:.3g}" for panel in data["panels"])
    return f"{outputs} filters of {rows}x{columns}, largest |weight| of {largest}"


def draw(data: dict[str, Any]) -> Figure:
    panels = data["panels"]
    weights = [torch.tensor(panel["weight"]) for panel in panels]
    height, width = _mosaic(weights[0])[0].shape[:2]
    inches = 3.3
    figure = canvas(0.3 + (inches + 0.5) * len(panels), 0.6 + inches * height / width)
    for axes, panel, weight in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, weights, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(wrapped(panel["title"], 40), loc="left")
        _picture(figure, axes, weight)
    return figure


def _picture(figure: Figure, axes: Axes, weight: Tensor) -> None:
    """Draw filters on three channels as colours with 0 in grey, others by sign: red above 0, blue below, 0 in white."""
    from matplotlib.patches import Rectangle

    largest = weight.abs().max().item()
    picture, corners = _mosaic(weight)
    if picture.dim() == 3:
        axes.imshow((0.5 + picture / (2 * largest)).nan_to_num(1).numpy())
        return
    image = axes.imshow(picture.numpy(), cmap="RdBu_r", interpolation="nearest", vmin=-largest, vmax=largest)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=18).outline.set_visible(False)
    rows, columns = weight.shape[2:]
    for x, y in corners:
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), columns, rows, fill=False, edgecolor=FAINT, linewidth=0.6, clip_on=False)
        )


def _mosaic(weight: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Arrange all filters in one picture with NaN between them; return it and the (x, y) corner of each filter.

    The picture is (H, W, 3) for filters on three channels, otherwise (H, W). With more than one channel that is not
    three, each filter has a row and each channel a column.
    """
    outputs, inputs, rows, columns = weight.shape
    tiles = weight.movedim(1, -1) if inputs == 3 else weight.flatten(0, 1)[..., None]
    across = inputs if inputs not in (1, 3) else math.ceil(math.sqrt(outputs))
    down = math.ceil(len(tiles) / across)
    picture = torch.full((down * (rows + GAP) - GAP, across * (columns + GAP) - GAP, tiles.shape[-1]), math.nan)
    corners = []
    for number, tile in enumerate(tiles):
        y, x = number // across * (rows + GAP), number % across * (columns + GAP)
        picture[y : y + rows, x : x + columns] = tile
        corners.append((x, y))
    return picture.squeeze(-1), corners

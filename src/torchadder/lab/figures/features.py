"""Draw the 2-D or 3-D features of LeNet++: clusters for an AdderNet, sectors by angle for a CNN.

The class FigureModule in gallery.py explains the functions that every figure has.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchadder.data import open_batches
from torchadder.errors import UserError
from torchadder.lab.figures.drawing import CLASS_COLOURS, INK, canvas, wrapped
from torchadder.lab.runs import FigureInputs, TrainedRun, several_networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = ("lenetpp", "lenetpp_3d")
BATCH = 250
PATTERNS = {"adder": "clusters", "conv": "sectors"}  # that the paper shows, by operator
NAMES = {"clusters": "clusters", "sectors": "sectors by angle", "neither": "neither clusters nor sectors"}


@dataclass(frozen=True)
class Shape:
    """Measure how the features f of the classes are arranged, with c the centre (mean) of the class of f.

    ``within``: mean of |f - c| over all images. ``between``: mean distance of two centres over all pairs.
    ``radial``: fraction of the variance about the centres that lies along the ray from the origin to the centre,
    sum ((f - c) . c / |c|)^2 / sum |f - c|^2: 1/d for round clusters in d dimensions, 1 for points on rays.
    ``by_distance``: fraction of the images that are nearer to the centre of their class than to any other.
    ``by_direction``: the same by angle, comparing f / |f| with the mean direction of each class.
    """

    within: float
    between: float
    radial: float
    by_distance: float
    by_direction: float
    dimensions: int

    @property
    def ratio(self) -> float:
        """Return ``within`` / ``between``: the smaller, the more compact the classes."""
        return self.within / self.between

    @property
    def pattern(self) -> str:
        """Return "clusters", "sectors" or "neither".

        The classes are clusters if ``radial`` is nearer to that of round clusters than to 1. Otherwise they are
        sectors if the direction misclassifies at most 1.5 times as many images as the distance.
        """
        if self.radial <= (1 + 1 / self.dimensions) / 2:
            return "clusters"
        return "sectors" if 1 - self.by_direction <= 1.5 * (1 - self.by_distance) else "neither"


def shape_of(points: Tensor, labels: Tensor) -> tuple[Shape, Tensor]:
    """Measure features (N, d) with labels (N,); return also the centres (K, d) of the K classes that occur, by label.

    Raises ValueError if fewer than two classes occur.
    """
    points = points.double()
    classes, own = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"expected features of two classes or more, got {len(classes)}")
    centres, directions = _means(points, own), _means(_unit(points), own)
    from_centre = points - centres[own]
    along = (from_centre * _unit(centres)[own]).sum(1)
    shape = Shape(
        within=from_centre.norm(dim=1).mean().item(),
        between=torch.pdist(centres).mean().item(),
        radial=(along.square().sum() / from_centre.square().sum()).item(),
        by_distance=_share(torch.cdist(points, centres).argmin(1) == own),
        by_direction=_share((_unit(points) @ _unit(directions).T).argmax(1) == own),
        dimensions=points.shape[1],
    )
    return shape, centres


def unsupported(runs: list[TrainedRun]) -> str | None:
    for run in runs:
        if run.recipe.model not in NETWORKS:
            known = " or ".join(NETWORKS)
            return f"{run.recipe.model} has no features in a plane or in space: name runs of {known}"
    datasets = sorted({run.recipe.dataset for run in runs})
    if len(datasets) > 1:
        return f"{' and '.join(datasets)} have different classes: name runs on one data set"
    return several_networks(runs)


def measure(inputs: FigureInputs) -> dict[str, Any]:
    """Return for each run the features and labels of all test images, the class centres, and the fields of Shape.

    Raises UserError if the data set cannot be loaded.
    """
    panels = []
    for title, run in inputs:
        points, labels = _features(inputs, title, run)
        try:
            shape, centres = shape_of(points, labels)
        except ValueError as error:
            raise UserError(f"{run.recipe.dataset}: {error}") from error
        numbers = {"ratio": shape.ratio, **asdict(shape), "pattern": shape.pattern}
        drawn = {
            "classes": labels.unique().tolist(),
            "centres": _rounded(centres),
            "points": _rounded(points),
            "labels": labels.tolist(),
        }
        panels.append({"title": title, "op": run.recipe.op, **numbers, **drawn})
    return {"panels": panels}


@torch.no_grad()
def _features(inputs: FigureInputs, title: str, run: TrainedRun) -> tuple[Tensor, Tensor]:
    model: Any = run.model()
    batches = open_batches(inputs.dataset(run).test, BATCH)
    points, labels = [], []
    for number, (images, batch_labels) in enumerate(batches):
        inputs.progress(f"features: {title}", number, len(batches))
        points.append(model.features(images))
        labels.append(batch_labels)
    inputs.progress(f"features: {title}", len(batches), len(batches))
    return torch.cat(points), torch.cat(labels)


def describe(data: dict[str, Any]) -> str:
    parts = []
    for panel in data["panels"]:
        parts += [
            f"{panel['title']}: within/between {panel['ratio']:.3f}, {panel['radial']:.0%} of the spread along rays "
            f"({1 / panel['dimensions']:.0%} is round), class told by distance {panel['by_distance']:.1%}, "
            f"by direction {panel['by_direction']:.1%}: {NAMES[panel['pattern']]}"
        ]
    return "; ".join(parts) + ". " + _verdict(data["panels"])


def _verdict(panels: list[dict[str, Any]]) -> str:
    """Return a sentence that compares these numbers with the figure of the paper."""
    wrong = [
        f"{panel['title']} has {NAMES[panel['pattern']]}"
        for panel in panels
        if panel["pattern"] != PATTERNS.get(panel["op"], panel["pattern"])
    ]
    ratios = {op: [panel["ratio"] for panel in panels if panel["op"] == op] for op in PATTERNS}
    if all(ratios.values()) and max(ratios["adder"]) >= min(ratios["conv"]):
        wrong += ["an AdderNet is no more compact than a CNN"]
    if wrong:
        return "Not as in the paper: " + ", ".join(wrong)
    if all(ratios.values()):
        return "As in the paper: clusters of the AdderNet, more compact than the CNN's sectors"
    return "As in the paper" if any(ratios.values()) else "The paper shows no such network"


def draw(data: dict[str, Any]) -> Figure:
    panels = data["panels"]
    figure = canvas(4.4 * len(panels) + 0.2, 4.9)
    for number, panel in enumerate(panels, 1):
        solid = panel["dimensions"] == 3
        axes: Any = figure.add_subplot(1, len(panels), number, projection="3d" if solid else None)
        if solid:
            axes.computed_zorder = False  # Labels are drawn over points at any depth.
        _points(axes, panel)
        axes.set_title(f"{wrapped(panel['title'], 40)}\nwithin/between {panel['ratio']:.3f}", loc="left")
        axes.tick_params(labelsize=7)
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def _points(axes: Any, panel: dict[str, Any]) -> None:
    from matplotlib.patheffects import withStroke

    points, labels = torch.tensor(panel["points"]), torch.tensor(panel["labels"])
    for label, centre in zip(panel["classes"], panel["centres"], strict=True):
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axes.scatter(*points[labels == label].T.numpy(), s=2, alpha=0.5, color=colour, linewidths=0, rasterized=True)
        outline = [withStroke(linewidth=2.5, foreground="white")]
        axes.text(
            *centre, str(label), color=INK, fontweight="bold", ha="center", va="center", path_effects=outline, zorder=5
        )


def _means(points: Tensor, own: Tensor) -> Tensor:
    return torch.stack([points[own == number].mean(0) for number in range(int(own.max()) + 1)])


def _unit(points: Tensor) -> Tensor:
    return torch.nn.functional.normalize(points, dim=1)


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _rounded(points: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in point] for point in points.double().tolist()]

"""Style, lay out and write figures. The colour-blind can tell the colours apart; the same data gives the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchadder import files
from torchadder.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of runs: Okabe and Ito, "Color Universal Design", 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Colours of classes: Tol, "Colour schemes", SRON/EPS/TN/09-002, 2021, "muted" and black
CLASS_COLOURS = (
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#222222"),
)
INK, FAINT = "#222222", "#8A8A8A"
MARKERS = "os^Dv"
LINES = ("-", "--", "-.", ":")

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # the font that matplotlib contains
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "torchadder",
}
DPI = 120
BINS = 60
INSIDE = 0.998  # fraction of the values that a histogram spans, so that outliers do not compress it
DRAWN = 5  # layers with a histogram; the axes below show the numbers of all layers


def check_installed() -> None:
    """Raise UserError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError('figures need matplotlib: pip install "torchadder[plot]"') from error


@contextmanager
def styled() -> Iterator[None]:
    """Apply the common style to everything that is drawn and written inside the context."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # A matplotlibrc of the user must not change the figures.
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, with automatic layout."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def write(figure: Figure, stem: Path) -> None:
    """Write ``stem``.png and ``stem``.svg without dates and versions. Raises OSError."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        files.write_bytes(stem.with_name(stem.name + suffix), buffer.getvalue())


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and the dashes of run ``number``; they repeat after 28 runs."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def wrapped(title: str, width: int) -> str:
    """Break a title into lines of at most ``width`` characters, at its commas where possible."""
    lines = [""]
    for part in title.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return ",\n".join(textwrap.fill(line, width) for line in lines if line)


def log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic with plain numbers at 1, 2 and 5, for a range of few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def evenly_spaced(names: Sequence[str], most: int) -> list[str]:
    """Return at most ``most`` of ``names`` at even distances, including the first and the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def histogram(values: Tensor) -> dict[str, list[float]]:
    """Return "edges" and "density" of BINS bins over the middle of the values, as a density of all of them."""
    order = values.double().flatten().sort().values
    cut = round(len(order) * (1 - INSIDE) / 2)
    counts, edges = torch.histogram(order[cut : len(order) - cut], BINS)
    density = counts / (len(order) * (edges[1] - edges[0]))
    return {"edges": edges.tolist(), "density": density.nan_to_num(0, 0, 0).tolist()}


def rows_and_layers(
    panels: Sequence[dict[str, Any]],
    row_height: float,
    legend: Sequence[str],
    draw_histogram: Callable[[Axes, dict[str, Any]], None],
) -> tuple[Figure, Axes]:
    """Return a figure with a row of histograms for each of ``panels``, and axes below with all layers along x.

    Args:
        panels: "title" and "layers", which have a "name" and are the same in all panels.
        legend: the labels that ``legend_beside`` will list beside the lower axes; they decide its height.
        draw_histogram: draws the histogram of one layer.
    """
    layers = [layer["name"] for layer in panels[0]["layers"]]
    drawn = evenly_spaced(layers, DRAWN)
    many = len(layers) > 8
    below = max(2.3 + many * 0.07 * max(map(len, layers)), 0.17 * sum(len(_beside(label)) for label in legend))
    heights = [0.4 + row_height * len(panels), below]
    figure = canvas(11, sum(heights))
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    for row, panel in zip(parts[0].subplots(len(panels), len(drawn), squeeze=False), panels, strict=True):
        row[0].set_ylabel(wrapped(panel["title"], 22))
        by_name = {layer["name"]: layer for layer in panel["layers"]}
        for place, name in zip(row, drawn, strict=True):
            draw_histogram(place, by_name[name])
            place.set_yticks([])
            place.spines["left"].set_visible(False)
            place.locator_params(axis="x", nbins=4)
            place.tick_params(colors=FAINT, labelcolor=INK)
    axes = parts[1].subplots()
    axes.set_xticks(range(len(layers)), layers, rotation=90 if many else 0)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def legend_beside(axes: Axes) -> None:
    """Add a legend to the right of ``axes``, with long labels on several lines."""
    handles, labels = axes.get_legend_handles_labels()
    lines = ["\n".join(_beside(label)) for label in labels]
    axes.legend(handles, lines, loc="center left", bbox_to_anchor=(1, 0.5))


def _beside(label: str) -> list[str]:
    return wrapped(label, 34).splitlines()

"""Build the charts of the page: Vega-Lite specifications, made with Altair, and the rows that they draw.

Colours are variables of the style sheet, so that charts follow the theme of the page, also in print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchadder.lab.report.content import Content, rounded
from torchadder.lab.weights import LayerWeights

SERIES = 8  # number of colours in the style sheet that are easy to tell apart
SPLITS = ("test", "train")
POINTS = 10  # With fewer epochs than this each is marked, because a line needs two points.
FONT = "system-ui, sans-serif"
DENSITY_POINTS = 121
EPOCH_TICKS = "sequence(ceil(first / step) * step, last + 1, step)"  # tickMinStep does not keep ticks at whole epochs.
STEPS = {  # The step is 1, 2 or 5 times a power of ten and gives 6 to 12 ticks.
    "rough": "max(1, (last - first) / 6)",
    "power": "pow(10, floor(log(rough) / LN10))",
    "step": "power * (rough < 2 * power ? 1 : rough < 5 * power ? 2 : 5)",
}
TICKS = [digit * 10**power for power in range(-9, 9) for digit in (1, 2, 5)]  # of a logarithmic axis

Spec = dict[str, Any]
Rows = list[dict[str, Any]]


def metrics(contents: Sequence[Content]) -> Rows:
    """Return the learning curves as rows: run (its index), split, epoch, accuracy in percent, loss."""
    return [
        {
            **{"run": number, "split": split, "epoch": row["epoch"]},
            **{name: rounded(row[f"{split}_{name}"]) for name in ("accuracy", "loss")},
        }
        for number, content in enumerate(contents)
        for row in content.run.metrics
        for split in SPLITS
    ]


def curves(quantity: str, titles: Sequence[str], rows: Rows) -> Spec:
    """Return the chart of ``quantity`` ("accuracy" or "loss") by epoch; its data set is named "metrics".

    The page sets the signals ``first`` and ``last`` (epochs to draw) and ``hidden`` (runs such as "run0", and splits),
    and reads ``zoom``, the epochs that the user dragged over.
    """
    import altair as alt

    values = [row[quantity] for row in rows if row[quantity] is not None]
    epochs = [row["epoch"] for row in rows]
    logarithmic = quantity == "loss" and min(values, default=0) > 0
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False)
    axis = alt.Axis(values=TICKS, format="~g") if logarithmic else alt.Axis(tickCount=5)
    title = {"accuracy": "accuracy, %", "loss": "loss, logarithmic" if logarithmic else "loss"}[quantity]
    digits = ".2f" if quantity == "accuracy" else ".4f"

    first, last = alt.param("first", value=min(epochs)), alt.param("last", value=max(epochs))
    hidden = alt.param("hidden", value=[])
    steps = [alt.param(name, expr=expression) for name, expression in STEPS.items()]
    base = (
        alt.Chart(alt.NamedData("metrics"))
        .transform_filter("datum.epoch >= first && datum.epoch <= last && isValid(datum." + quantity + ")")
        .transform_filter("indexof(hidden, 'run' + datum.run) < 0 && indexof(hidden, datum.split) < 0")
    )
    x = alt.X(
        "epoch:Q",
        title="epoch",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(values=alt.ExprRef(EPOCH_TICKS), format="d"),
    )
    numbers = list(range(len(titles)))
    color = alt.Color(
        "run:N", legend=None, scale=alt.Scale(domain=numbers, range=[f"var(--series-{n + 1})" for n in numbers])
    )
    dash = alt.StrokeDash("split:N", legend=None, scale=alt.Scale(domain=[*SPLITS], range=[[1, 0], [4, 3]]))
    zoom = alt.selection_interval(name="zoom", encodings=["x"], mark=alt.BrushConfig(fill="var(--accent)"))
    lines = base.mark_line(strokeWidth=1.75, point=max(epochs) - min(epochs) < POINTS).encode(
        x=x,
        y=alt.Y(f"{quantity}:Q", title=title, scale=scale, axis=axis),
        color=color,
        strokeDash=dash,
    )
    tooltip = [alt.Tooltip("epoch:Q", format="d")]
    for n, name in enumerate(titles):
        prefix = f"{name}, " if len(titles) > 1 else ""
        tooltip += [alt.Tooltip(f"{split}{n}:Q", title=prefix + split, format=digits) for split in SPLITS]
    hover = alt.selection_point(
        name="hover", fields=["epoch"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    rule = (
        base.transform_calculate(key="datum.split + datum.run")
        .transform_pivot("key", value=quantity, groupby=["epoch"])
        .mark_rule(color="var(--ink-soft)")
        .encode(x=x, opacity=alt.condition(hover, alt.value(0.6), alt.value(0)), tooltip=tooltip)
        .add_params(hover)
    )
    chart = alt.layer(lines.add_params(zoom), rule).add_params(first, last, hidden, *steps)
    return _finished(chart, height=260)


def weight_histogram() -> Spec:
    """Return the chart of a layer's weights (data set "bins") with both fitted densities (data set "fits")."""
    import altair as alt

    x_axis = alt.Axis(tickCount=5, grid=False)
    bars = (
        alt.Chart(alt.NamedData("bins"))
        .mark_bar(color="var(--bar)", binSpacing=0)
        .encode(
            x=alt.X("from:Q", bin="binned", title=None, axis=x_axis, scale=alt.Scale(nice=False, zero=False)),
            x2="to:Q",
            y=alt.Y("density:Q", title=None, axis=None),
            tooltip=[alt.Tooltip("from:Q", format=".3g"), alt.Tooltip("to:Q", format=".3g"), alt.Tooltip("weights:Q")],
        )
    )
    densities = alt.Chart(alt.NamedData("fits"))
    lines = [
        densities.mark_line(strokeWidth=1.75, color=f"var(--{name.lower()})", strokeDash=dash).encode(
            x="x:Q", y=f"{name}:Q"
        )
        for name, dash in (("Laplace", [1, 0]), ("Gaussian", [4, 3]))
    ]
    return _finished(alt.layer(bars, *lines), height=110)


def weight_rows(layer: LayerWeights) -> dict[str, Rows]:
    """Return the rows for ``weight_histogram``: about sqrt(n) bins of equal width over all n weights, and the fits."""
    low, high = layer.values.min().item(), layer.values.max().item()
    count = min(60, max(10, round(layer.values.numel() ** 0.5)))
    weights = torch.histc(layer.values, count, low, high)
    edges = torch.linspace(low, high, count + 1)
    densities = weights / weights.sum() * count / (high - low)
    x = torch.linspace(low, high, DENSITY_POINTS, dtype=torch.float64)
    laplace, gaussian = layer.laplace.density(x), layer.gaussian.density(x)
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), densities.tolist(), weights.tolist(), strict=True)
    lines = zip(x.tolist(), laplace.tolist(), gaussian.tolist(), strict=True)
    return {
        "bins": [
            {"from": rounded(a, 4), "to": rounded(b, 4), "density": rounded(density, 4), "weights": int(number)}
            for a, b, density, number in bins
        ],
        "fits": [
            {"x": rounded(value, 4), "Laplace": rounded(one, 4), "Gaussian": rounded(other, 4)}
            for value, one, other in lines
        ],
    }


def _finished(chart: Any, height: int) -> Spec:
    text = {"labelColor": "var(--ink-soft)", "titleColor": "var(--ink-soft)", "labelFontSize": 12, "titleFontSize": 12}
    lines = {"gridColor": "var(--line)", "domainColor": "var(--line)", "tickColor": "var(--line)"}
    spec: Spec = (
        chart.properties(width="container", height=height, background="transparent")
        .configure(font=FONT, aria=False)  # The page describes each chart in words and repeats it as a table.
        .configure_view(stroke=None)
        .configure_axis(**text, **lines, titleFontWeight="normal")
        .to_dict()
    )
    del spec["$schema"]  # The page names the language; a version that differs would print a warning.
    return spec

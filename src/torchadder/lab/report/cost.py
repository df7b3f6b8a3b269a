"""Estimate the cost of a network: its operation counts times the published cost of one operation.

Only arithmetic is counted, and every operation has the width of the table: memory, control and wider accumulators are
left out, and first and last layers are treated like the others. A cost that is not published is not estimated.
"""

from __future__ import annotations

from typing import NamedTuple

from torchadder.counts import Summary

_NANO = "Chen et al., AdderNet, CVPR 2020, section 4.1"
_HOROWITZ = "Horowitz, Computing's energy problem, ISSCC 2014, 10.1109/ISSCC.2014.6757323"
_NANO_PUBLISHED = {"conv": "2.6M", "adder": "1.7M"}  # cycles of LeNet-5-BN as the AdderNet paper prints them
_NOTE = "arithmetic alone, every operation at the row's width; memory and control are left out"
_NONE = "-"


class OperationCost(NamedTuple):
    """Hold the published cost of one operation in ``unit``; None where it is not published. No source has XNOR."""

    name: str
    unit: str
    mul: float | None
    add: float
    source: str

    def total(self, summary: Summary) -> float | None:
        """Return the cost of one image in ``unit``; None if the cost of a needed operation is not published."""
        if summary.xnor or (summary.mul and self.mul is None):
            return None
        return summary.mul * (self.mul or 0) + summary.add * self.add


COSTS = (
    OperationCost("VIA Nano 2000, float", "cycles", 4, 2, _NANO),
    OperationCost("45 nm, int8", "pJ", 0.2, 0.03, _HOROWITZ),
    OperationCost("45 nm, int16", "pJ", None, 0.05, _HOROWITZ),
    OperationCost("45 nm, int32", "pJ", 3.1, 0.1, _HOROWITZ),
    OperationCost("45 nm, fp16", "pJ", 1.1, 0.4, _HOROWITZ),
    OperationCost("45 nm, fp32", "pJ", 3.7, 0.9, _HOROWITZ),
)


def cells(summary: Summary) -> list[list[str]]:
    """Return the table as text: a header, then a row for each of ``COSTS``. The first two columns are words."""
    published = _NANO_PUBLISHED if summary.paper is not None and summary.model == "lenet5bn" else {}
    rows = [["cost of one image", "unit", "#Mul", "#Add", "total", "paper"]]
    for cost in COSTS:
        total = cost.total(summary)
        at_least = ">= " if summary.unknown and total is not None else ""
        paper = published.get(summary.op or "", _NONE) if cost.source == _NANO else _NONE
        rows.append(
            [cost.name, cost.unit, _number(cost.mul), _number(cost.add), at_least + _number(total), paper],
        )
    return rows


def notes(summary: Summary) -> list[str]:
    """Return what the totals mean, why a total is missing, and the sources."""
    missing = [cost.name for cost in COSTS if cost.total(summary) is None]
    reasons = []
    if summary.xnor:
        reasons = ["no total: the cost of an #XNOR is not published"]
    elif missing:
        reasons = [f"no total where the cost of a #Mul is not published: {'; '.join(missing)}"]
    return [_NOTE, *reasons, *(f"source: {source}" for source in (_NANO, _HOROWITZ))]


def _number(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{round(value):,}" if value >= 1000 else f"{value:g}"

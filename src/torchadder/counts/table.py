"""What was counted, layer by layer: totals, a printed table, plain values for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torchadder.counts.paper import Published

_PAPER_NOTE = (
    "paper: as published; it rounds, partly includes other layers, and takes first and last layer like the rest"
)
_COUNTS = ("mul", "add", "xnor", "parameters", "activations")


@dataclass
class Row:
    """A module that computes or holds parameters.

    `free`: costs nothing by the convention. `unknown`: what of it is not counted, and why.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None = None  # of one example; None where the module gave no tensor or never ran
    activations: int = 0  # elements that its counted operators put out
    parameters: int = 0
    mul: int = 0
    add: int = 0
    xnor: int = 0
    free: bool = False
    unknown: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """Rows in the order of definition, and their totals. `str()` is a table, `to_dict()` plain values."""

    model: str
    op: str | None
    input_size: tuple[int, ...] | None  # None where the caller gave the inputs themselves
    rows: list[Row]
    paper: Published | None = None

    @property
    def mul(self) -> int:
        return sum(row.mul for row in self.rows)

    @property
    def add(self) -> int:
        return sum(row.add for row in self.rows)

    @property
    def xnor(self) -> int:
        return sum(row.xnor for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def activations(self) -> int:
        return sum(row.activations for row in self.rows)

    @property
    def unknown(self) -> list[Row]:
        """The rows that the totals leave out, wholly or in part: they make the totals lower bounds."""
        return [row for row in self.rows if row.unknown]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "op": self.op,
            "input_size": None if self.input_size is None else list(self.input_size),
            "exact": not self.unknown,
            "total": {name: getattr(self, name) for name in _COUNTS},
            "paper": None if self.paper is None else self.paper.to_dict(),
            "layers": [{**vars(row), "output": None if row.output is None else list(row.output)} for row in self.rows],
        }

    @property
    def title(self) -> str:
        size = None if self.input_size is None else f"input {_times(self.input_size)}"
        return " · ".join(part for part in (self.model, self.op, size) if part)

    def cells(self) -> list[list[str]]:
        """The table as text: header, one line a layer, free modules by kind, total, the paper's total.

        Activations are shapes by layer, the number of their elements in total.
        """
        lines = [["layer", "type", "activations", "parameters", "#Mul", "#Add", "#XNOR"]]
        for row in self.rows:
            if not row.free:
                shape = "" if row.output is None else _times(row.output)
                operations = [f"{n:,}" for n in (row.mul, row.add, row.xnor)]
                if row.unknown:
                    operations = [n if n != "0" else "?" for n in operations]
                lines.append([row.name, row.kind, shape, f"{row.parameters:,}", *operations])
        free = [row for row in self.rows if row.free]
        for kind, count in Counter(row.kind for row in free).items():
            parameters = sum(row.parameters for row in free if row.kind == kind)
            lines.append([f"{count} not counted", kind, "", f"{parameters:,}", "", "", ""])
        at_least = ">= " if self.unknown else ""
        activations, *operations = (f"{at_least}{n:,}" for n in (self.activations, self.mul, self.add, self.xnor))
        lines.append(["total", "", activations, f"{self.parameters:,}", *operations])
        if self.paper:
            lines.append(["paper", "", "", "", *self.paper])
        return lines

    def notes(self) -> list[str]:
        """One line for each thing that the totals leave out, and one on the paper's where they differ."""
        notes = [f"not counted: {row.name} ({row.kind}): {why}" for row in self.unknown for why in row.unknown]
        if self.paper and self.paper.to_dict() != {"mul": self.mul, "add": self.add, "xnor": self.xnor}:
            notes.append(_PAPER_NOTE)
        return notes

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([self.title, "", *lines, *self.notes()])


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

"""The report of a conversion: what became of each layer, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Outcome = Literal["converted", "already", "kept", "left"]

_FOUND = {
    "recorded": "order of execution, recorded on the example input",
    "traced": "order of execution, traced by torch.fx",
    "defined": "order of definition, as the order of execution is not known",
}


@dataclass(frozen=True)
class Row:
    """A layer, by class name before and after.

    ``outcome``: "converted", "already" of that kind, "kept" by choice, or "left" since it cannot be converted.
    """

    name: str
    before: str
    after: str
    outcome: Outcome
    note: str = ""


@dataclass(frozen=True)
class Conversion:
    """Rows in order of definition. ``str()`` is a table, ``to_dict()`` plain values.

    ``flow``: how it was found which layers run first and last and what follows each: "recorded" on the example
    input, "traced" by torch.fx, or "defined": taken from the order of definition. None where nobody asked.
    """

    model: str
    to: str
    flow: Literal["recorded", "traced", "defined"] | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "to": self.to, "flow": self.flow, "layers": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        counts = Counter(row.outcome for row in self.rows)
        title = ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome) if counts[outcome])
        cells = [("layer", "was", "is"), *((row.name or "(model)", row.before, _is(row)) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        found = [] if self.flow is None else ["", _FOUND[self.flow]]
        return "\n".join([f"{self.model} to {self.to}: {title}", "", *table, *found])


def _is(row: Row) -> str:
    return row.after if row.outcome == "converted" else f"{row.outcome}: {row.note}".removesuffix(": ")

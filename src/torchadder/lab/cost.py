"""The cost model: operation counts times what one operation costs, from tables that are published or the reader's own.

Arithmetic alone: memory and control are left out. All operations of a network have the width of the table, the
sums of an 8-bit network too, which are wider in hardware, and its first and last layers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchadder.counts import Summary
from torchadder.errors import UserError

BUILT_IN = Path(__file__).with_name("costs.toml")
OPERATIONS = {"mul": "#Mul", "add": "#Add", "xnor": "#XNOR"}
NOTHING = "-"
LARGEST = 1e12

_TEXTS = ("unit", "source")
_PAPER = {("VIA Nano 2000, float", "conv"): "2.6M", ("VIA Nano 2000, float", "adder"): "1.7M"}  # of LeNet-5-BN
_NOTE = "arithmetic alone, every operation at the row's width; memory and control are left out"


@dataclass(frozen=True)
class CostTable:
    """What one operation costs, in ``unit``; None where there is no figure."""

    name: str
    unit: str
    source: str = ""
    mul: float | None = None
    add: float | None = None
    xnor: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a network costs by one table, for one image.

    ``total``: in the table's unit; None where the table lacks a figure that the network needs. ``missing``: those
    ("mul", "add", "xnor"). ``exact``: False where operations could not be counted: the total is a lower bound then.
    ``paper``: as the paper prints it, "1.7M".
    """

    table: CostTable
    total: float | None
    missing: tuple[str, ...]
    exact: bool
    paper: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of the table with the others beside them."""
        own = {name: value for name, value in vars(self).items() if name != "table"}
        return {**asdict(self.table), **own, "missing": [*self.missing]}


def built_in() -> list[CostTable]:
    """VIA Nano 2000 (the paper's processor; cycles) and the 45 nm figures of Horowitz, ISSCC 2014 (pJ)."""
    return read_tables(BUILT_IN)


def costs(summary: Summary, tables: Iterable[CostTable] | None = None) -> list[Cost]:
    """What ``summary`` costs by each of ``tables`` (default: ``built_in()``), in their order."""
    return [_cost(summary, table) for table in (built_in() if tables is None else tables)]


def _cost(summary: Summary, table: CostTable) -> Cost:
    needed = {name: count for name in OPERATIONS if (count := getattr(summary, name))}
    missing = tuple(name for name in needed if getattr(table, name) is None)
    total = None if missing else sum(count * getattr(table, name) for name, count in needed.items())
    ours = summary.paper is not None and summary.model == "lenet5bn"
    paper = _PAPER.get((table.name, summary.op or "")) if ours else None
    return Cost(table, total, missing, not summary.unknown, paper)


def cells(costs: Sequence[Cost]) -> list[list[str]]:
    """The table as text: a header, one line a table of costs. Two columns of text, then numbers."""
    lines = [["cost of one image", "unit", *OPERATIONS.values(), "total", "paper"]]
    for cost in costs:
        table = cost.table
        each = [_number(getattr(table, name)) for name in OPERATIONS]
        total = _number(cost.total)
        at_least = "" if cost.exact or cost.total is None else ">= "
        lines.append([table.name, table.unit, *each, at_least + total, cost.paper or NOTHING])
    return lines


def notes(costs: Sequence[Cost]) -> list[str]:
    """What the totals mean, which are not there and why, and where the figures are from."""
    notes = [_NOTE]
    for name, title in OPERATIONS.items():
        without = [cost.table.name for cost in costs if name in cost.missing]
        if without:
            where = "any table" if len(without) == len(costs) > 1 else "; ".join(without)
            notes.append(f"no total where a figure for {title} is not published or not given: {where}")
    return notes + [f"source: {source}" for source in dict.fromkeys(c.table.source for c in costs) if source]


def text(costs: Sequence[Cost]) -> str:
    """The table and its notes as plain text."""
    lines = cells(costs)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]) for line in lines]
    return "\n".join([*table, *notes(costs)])


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{round(value):,}" if value >= 1000 else f"{value:g}"


def read_tables(path: Path) -> list[CostTable]:
    """The tables of a TOML file, in its order; costs.toml beside this module is one.

        ["My accelerator, int8"]
        unit = "pJ"
        mul = 0.31
        add = 0.02
        source = "data sheet, page 7"

    ``unit`` and at least one of mul, add and xnor have to be there. Raises UserError that says what is wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or no TOML
        raise UserError(f"{path} is no TOML: {' '.join(str(error).split()) or 'nested too deep'}") from error
    if not content:
        raise UserError(f'{path} holds no table of costs: expected e.g. ["My chip"], unit = "pJ", add = 0.1')
    return [_table(path, name, fields) for name, fields in content.items()]


def _table(path: Path, name: str, fields: Any) -> CostTable:
    known = (*OPERATIONS, *_TEXTS)
    where = f"{path}, {name!r}"
    if not name or not name.isprintable():
        raise UserError(f"{where}: expected a line of text as the name of a table")
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a table of costs under a heading, got {fields!r}")
    for key, value in fields.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        if key in _TEXTS and not (isinstance(value, str) and value.isprintable()):
            raise UserError(f"{where}: {key} = {value!r}, expected a line of text")
        if key in OPERATIONS and (type(value) not in (int, float) or not 0 <= value <= LARGEST):
            raise UserError(f"{where}: {key} = {value!r}, expected a number from 0 to {LARGEST:g}")
    if not fields.get("unit"):
        raise UserError(f'{where}: no unit; expected e.g. unit = "pJ"')
    if not fields.keys() & OPERATIONS.keys():
        raise UserError(f"{where}: no cost; expected at least one of {', '.join(OPERATIONS)}")
    return CostTable(name, **fields)

"""torchadder summary: the operation counts of a model, by layer and in total, and what they cost."""

import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from torchadder.counts import summary as count
from torchadder.environment import describe_environment
from torchadder.errors import UserError
from torchadder.lab import cost
from torchadder.lab.bench import one_image
from torchadder.models import create_model, list_models
from torchadder.models.registry import OPS


def summary(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"One of: {', '.join(list_models())}.", show_default=False)
    ],
    op: Annotated[str, typer.Option(metavar="|".join(OPS), help="The operator of its layers.")] = "adder",
    input_size: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="Shape of one input, e.g. 3x32x32 (default: the paper's)."),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tables of what an operation costs (TOML), beside the published."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time one image on one thread, here.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Count the multiplications, additions and XNORs of MODEL for one image, the paper's count below.

    What they cost follows: cycles on the paper's processor, energy by published figures for 45 nm, and whatever a
    file adds with headings like ["My chip"] and lines like unit = "pJ", mul = 0.3, add = 0.02, xnor = 0.001.
    """
    size = None if input_size is None else _size(input_size)
    own = [] if costs is None else cost.read_tables(costs)
    tables = {table.name: table for table in [*cost.built_in(), *own]}  # one's own in place of one of the same name
    network = create_model(model, op=op, in_chans=None if size is None else size[0])
    counts = count(network, size)
    found = cost.costs(counts, tables.values())
    times = one_image.measure(network, size or network.input_size) if measure else []
    if json:
        more: dict[str, Any] = {"costs": [each.to_dict() for each in found]}
        if measure:
            more["measured"] = {"environment": {**describe_environment(), "threads": 1}, "rows": times}
        print(json_format.dumps({**counts.to_dict(), **more}))
        return
    terminal = Console(file=sys.stdout)
    first = _table(counts.title, counts.cells(), counts.notes(), 3)
    second = _table(None, cost.cells(found), cost.notes(found), 2)
    if terminal.is_terminal and max(_width(first), _width(second)) <= terminal.width:
        terminal.print(first, "", second)
    else:
        print(counts, cost.text(found), sep="\n\n")
    if measure:
        print("\n" + "\n".join(_measured(times)))


def _size(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UserError(f"--input-size {text}: expected CxHxW, e.g. 3x32x32") from None
    if min(channels, height, width) < 1:
        raise UserError(f"--input-size {text}: every size must be at least 1")
    return channels, height, width


def _table(title: str | None, cells: Sequence[Sequence[str]], notes: Sequence[str], text_columns: int) -> Table:
    header, *lines = cells
    table = Table(title=title, caption=escape("\n".join(notes)) or None, title_justify="left", caption_justify="left")
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column < text_columns else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(escape, line), style="bold" if line[0] == "total" else None)
    return table


def _width(table: Table) -> int:
    unbounded = Console(width=1_000)
    return Measurement.get(unbounded, unbounded.options, table).maximum


def _measured(times: Sequence[dict[str, Any]]) -> list[str]:
    """A heading that says where, and a line for each runtime."""
    here = describe_environment()
    lines = [
        f"measured: one image on one thread, {here['processor']}, kernels {here['kernels']}, median of {times[0]['n']}"
    ]
    for row in times:
        found = row["milliseconds"]
        lines.append(f"{row['runtime']:<16}{'-: ' + row['reason'] if found is None else f'{found:.4g} ms'}")
    return lines

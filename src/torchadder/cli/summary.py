"""torchadder summary: the operation counts of a model, by layer and in total."""

import json as json_format
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from torchadder.analysis import Summary
from torchadder.analysis import summary as count
from torchadder.errors import UserError
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
    json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Count the multiplications, additions and XNORs of MODEL for one image, the paper's count below."""
    size = None if input_size is None else _size(input_size)
    network = create_model(model, op=op, in_chans=None if size is None else size[0])
    counts = count(network, size)
    terminal, table = Console(file=sys.stdout), _table(counts)
    if json:
        print(json_format.dumps(counts.to_dict()))
    elif terminal.is_terminal and _width(table) <= terminal.width:
        terminal.print(table)
    else:
        print(counts)


def _size(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UserError(f"--input-size {text}: expected CxHxW, e.g. 3x32x32") from None
    if min(channels, height, width) < 1:
        raise UserError(f"--input-size {text}: every size must be at least 1")
    return channels, height, width


def _table(counts: Summary) -> Table:
    header, *lines = counts.cells()
    table = Table(title=counts.title, caption="\n".join(counts.notes()) or None, title_justify="left")
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column < 3 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "total" else None)
    return table


def _width(table: Table) -> int:
    unbounded = Console(width=1_000)
    return Measurement.get(unbounded, unbounded.options, table).maximum

"""torchadder summary: the operation counts of a model, by layer and in total."""

import json as json_format
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from torchadder.counts import summary as count
from torchadder.environment import describe_environment
from torchadder.errors import UserError
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
    measure: Annotated[bool, typer.Option("--measure", help="Time one image on one thread, here.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Count the multiplications, additions and XNORs of MODEL for one image, the paper's count below."""
    size = None if input_size is None else _size(input_size)
    network = create_model(model, op=op, in_chans=None if size is None else size[0])
    counts = count(network, size)
    times = one_image.measure(network, size or network.input_size) if measure else []
    if json:
        more: dict[str, Any] = {}
        if measure:
            more["measured"] = {"environment": {**describe_environment(), "threads": 1}, "rows": times}
        print(json_format.dumps({**counts.to_dict(), **more}))
        return
    terminal = Console(file=sys.stdout)
    table = _table(counts.title, counts.cells(), counts.notes(), 3)
    if terminal.is_terminal and _width(table) <= terminal.width:
        terminal.print(table)
    else:
        print(counts)
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

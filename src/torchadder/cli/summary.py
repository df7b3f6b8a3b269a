"""Run `torchadder summary`: print the operation counts of a model, by layer and in total."""

from __future__ import annotations

import json as json_format
from typing import Annotated

import typer

from torchadder.cli import console
from torchadder.cli.options import MODELS, OPS, Json
from torchadder.errors import UserError


def summary(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"One of: {', '.join(MODELS)}; or package.module:function, which builds a network of yours.",
            show_default=False,
        ),
    ],
    op: Annotated[str, typer.Option(metavar="|".join(OPS), help="The operator of its layers.")] = "adder",
    input_size: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="Shape of one input, such as 3x32x32 (default: that of the paper)."),
    ] = None,
    json: Json = False,
) -> None:
    """Count the multiplications, additions and XNORs of MODEL for one image, beside the count of the paper."""
    size = None if input_size is None else _size(input_size)
    from torchadder.counts import summary as count
    from torchadder.models import create_model
    from torchadder.models.trained import build_network, is_function

    if is_function(model):
        if size is None:
            raise UserError(f"{model}: pass the shape of an input with --input-size, such as 3x32x32")
        counts = count(build_network(model), size)
    else:
        counts = count(create_model(model, op=op, in_chans=None if size is None else size[0]), size)
    if json:
        print(json_format.dumps(counts.to_dict()))
    else:
        columns, *rows = counts.cells()
        console.table(columns, rows, texts=3, title=counts.title, notes=counts.notes())


def _size(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UserError(f"--input-size {text}: expected CxHxW, such as 3x32x32") from None
    if min(channels, height, width) < 1:
        raise UserError(f"--input-size {text}: every size must be at least 1")
    return channels, height, width

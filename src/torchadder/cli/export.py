"""Run `torchadder export`: write an integer program in a form that runs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli.options import SUFFIX
from torchadder.errors import UserError

FORMS = ("c",)


def export(
    file: Annotated[Path, typer.Argument(metavar=f"FILE{SUFFIX}", help="An integer program.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="|".join(FORMS), help="c: C99 source code for microcontrollers.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder that gets the files.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the files and prefix of the functions.")] = "net",
    max_flash: Annotated[
        int | None, typer.Option(min=0, help="The most bytes of constant tables.", show_default=False)
    ] = None,
    max_ram: Annotated[int | None, typer.Option(min=0, help="The most bytes of arena.", show_default=False)] = None,
) -> None:
    """Write FILE as one C99 file that needs no library and allocates nothing, with a header and a test."""
    if to not in FORMS:
        raise UserError(f"to={to!r}: expected {' or '.join(FORMS)}")
    from torchadder.export import export_c

    draft = export_c(file, out, name=name, max_flash=max_flash, max_ram=max_ram)
    print(f"{out / name}.c  {draft.flash:,} bytes of constant tables, {draft.arena:,} bytes of arena")

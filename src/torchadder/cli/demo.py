"""Run `torchadder demo`: write an HTML page that runs an integer program in a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli import console
from torchadder.cli.options import SUFFIX


def demo(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar=f"FILE{SUFFIX}",
            help="An integer program (default: pico_wide of the package, for digits).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page; an earlier one is replaced.")
    ] = Path("demo.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write a page that runs FILE in the browser: draw or choose an image, and see the answer and all layers.

    The page is one file. It opens from disk, and needs no server and no network.
    """
    from torchadder.export.page import DIGITS, export_page
    from torchadder.models.pretrained import find_program

    export_page(DIGITS if file is None else find_program(file), out)
    print(f"{console.printable(str(out))} · {out.stat().st_size / 1e3:.0f} kB: open it in a browser")
    if show:
        webbrowser.open(out.resolve().as_uri())

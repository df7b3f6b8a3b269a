"""Run `torchadder figures`: draw the figures of the paper's analysis from trained runs."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli.console import Bar
from torchadder.cli.options import FIGURES, DataFolder, Json


def figures(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that train wrote.", show_default=False)],
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help=f"Some of: {', '.join(FIGURES)} (default: all that the runs can make).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the figures.")] = Path("figures"),
    data: DataFolder = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="Training steps of each run that the figure of gradients repeats.")
    ] = 100,
    json: Json = False,
) -> None:
    """Draw the figures of the paper's analysis from trained runs, side by side.

    Each is written three times: NAME.png, NAME.svg, and NAME.json with all that is drawn.
    """
    from torchadder.lab.figures import FigureInputs, write_figures
    from torchadder.lab.runs import TrainedRun

    names = [name.strip() for name in figure.split(",")] if figure is not None else []
    with Bar(sys.stderr, transient=True) as bar:

        def show(what: str, done: int, total: int) -> None:
            if bar.live:
                bar.update(what, done, total, f"{done}/{total}")
            elif done == 0:
                bar.print(what)

        found = [TrainedRun.read(folder) for folder in runs]
        inputs = FigureInputs(found, data_dir=data, iterations=iterations, progress=show)
        made, left_out = write_figures(inputs, out, names)
    if json:
        written = [
            {"name": m.name, **{kind: f"{m.stem}.{kind}" for kind in ("png", "svg", "json")}, "line": m.line}
            for m in made
        ]
        print(json_format.dumps({"figures": written, "left_out": left_out}))
        return
    for figure_made in made:
        print(f"{figure_made.name}  {figure_made.line}  -> {figure_made.stem}.png .svg .json")
    for name, reason in left_out.items():
        print(f"{name}  left out: {reason}")

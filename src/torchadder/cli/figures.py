"""torchadder figures: the figures of the paper's analysis, of one's own runs."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from torchadder.cli.options import DataFolder
from torchadder.lab.figures import FIGURES, FigureInputs, write_figures
from torchadder.lab.runs import TrainedRun


def figures(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that train wrote.", show_default=False)],
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help=f"Of: {', '.join(FIGURES)} (default: all that the runs can make).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the figures.")] = Path("figures"),
    data: DataFolder = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="Of each run, that are trained again for the figure of gradients.")
    ] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as one JSON object.")] = False,
) -> None:
    """Draw the figures of the paper's analysis from trained runs, side by side.

    Each is written three times: NAME.png, NAME.svg, and NAME.json with all that is drawn.
    """
    names = [name.strip() for name in figure.split(",")] if figure is not None else []
    with _Bar() as bar:
        found = [TrainedRun.read(folder) for folder in runs]
        inputs = FigureInputs(found, data_dir=data, iterations=iterations, progress=bar.show)
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


class _Bar:
    """What is being computed, on stderr: a bar on a terminal, a line for each part elsewhere."""

    def __init__(self) -> None:
        terminal = Console(file=sys.stderr, markup=False, highlight=False)
        self._live = terminal.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.completed}/{task.total}"),
        )
        self._bar = RichProgress(*columns, console=terminal, transient=True, disable=not self._live)
        self._task = self._bar.add_task("", visible=False)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        if self._live:
            self._bar.update(self._task, description=what, completed=done, total=total, visible=True)
        elif done == 0:
            print(what, file=sys.stderr, flush=True)

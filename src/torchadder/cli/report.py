"""Run `torchadder report`: write one HTML page about a training run, or about several side by side."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli.options import SUFFIX, DataFolder, Workers


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.html",
            help="The page (default: report.html in the folder of the run, or here for several runs).",
        ),
    ] = None,
    data: DataFolder = None,
    program: Annotated[
        Path | None,
        typer.Option(metavar=f"FILE{SUFFIX}", help="An integer program of the run, beside those in its folder."),
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Test the model: confusions and mistakes.")] = True,
    workers: Workers = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write a page about a training run: recipe, curves, confusions, layers, weights. Several runs are compared.

    The page is one file that needs no network. It shows the model of the last epoch, and names what it cannot show
    with the reason.
    """
    from torchadder.lab import report as page
    from torchadder.lab.runs import TrainedRun

    start = time.perf_counter()
    default = runs[0] if len(runs) == 1 else Path()
    path = default / "report.html" if out is None else out
    missing = page.write(
        [TrainedRun.read(folder) for folder in runs], path, data_dir=data, test=test, program=program, workers=workers
    )
    for line in missing:
        print(line)
    print(f"{path} · {path.stat().st_size / 1e6:.1f} MB · {time.perf_counter() - start:.1f} s")
    if show:
        webbrowser.open(path.resolve().as_uri())

"""Run `torchadder reproduce`: train each row of a table of the paper and print it beside the paper's numbers."""

from __future__ import annotations

import json as json_format
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchadder.cli import console
from torchadder.cli.options import TABLES, DataFolder, Json
from torchadder.errors import UserError
from torchadder.train import Progress, Recipe

if TYPE_CHECKING:
    from torchadder.lab.reproduce import Job, Report, Result
    from torchadder.models import Model
else:
    Report = Progress  # its base class: importing Report would import torch, and --help must not wait for that

RUNS = Path("runs/reproduce")


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"One of: {', '.join(TABLES)}.", show_default=False)],
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Shorten every run to this many epochs; shortened runs are marked and stored apart "
            "(default: the recipe's).",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each row (default: 3 or 1, by table).")] = None,
    only: Annotated[str, typer.Option(metavar="WORD", help="Only rows with WORD in label or recipe.")] = "",
    data: DataFolder = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = RUNS,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of the record (default: results; of shortened runs, their own folder)."),
    ] = None,
    json: Json = False,
) -> None:
    """Run every row of TABLE and print it beside the paper's numbers.

    After an interruption, give the same command again: finished runs are not
    repeated, and an interrupted one continues from its last epoch. A row that
    cannot run is skipped with a line that says why; the exit code is then 2.
    """
    from torchadder.lab.reproduce import Queue, get_experiment
    from torchadder.lab.reproduce.table import fill, tables
    from torchadder.train.distributed import several

    if several():
        raise UserError("reproduce runs in one process: start it without torchrun, or train its rows one by one")
    experiment = get_experiment(table)
    queue = Queue(experiment, seeds=seeds, epochs=epochs, out=out, results=results, only=only)
    with console.Bar(sys.stderr if json else sys.stdout, transient=True) as bar:
        try:
            ended = queue.run(data, _Lines(bar, len(queue.jobs)))
        except KeyboardInterrupt:
            bar.close()
            flags = {"--epochs": epochs, "--seeds": seeds, "--only": only, "--data": data}
            flags |= {"--out": out if out != RUNS else None, "--results": results, "--json": json}
            console.error(f"interrupted; what is saved is kept, continue with: {_command(table, flags)}")
            raise typer.Exit(130) from None
    record = queue.record()
    filled = fill(experiment, {queue.record_path.name: record} if record else {}, queue.epochs)
    reasons = {result.job.row.label: result.reason for result in reversed(ended) if result.reason}
    if json:
        rows = [{**line.to_dict(), "reason": reasons.get(line.row.label)} for line in filled]
        about = {"table": experiment.name, "title": experiment.title, "shortened": queue.shortened, "rows": rows}
        print(json_format.dumps({**about, "record": str(queue.record_path) if record else None}))
    else:
        short = f", shortened to {queue.epochs} of {experiment.epochs} epochs" if queue.shortened else ""
        print(f"\n{experiment.title}{short}")
        for columns, *cells in tables(experiment, filled):
            print()
            console.table(columns, cells)
        print(f"\nwritten to {queue.record_path}" if record else "\nno run is finished: nothing written")
    if reasons:
        raise typer.Exit(2)


class _Lines(Report):
    """Print one line for each run that ended and, on a terminal, a bar for the current run."""

    def __init__(self, bar: console.Bar, total: int):
        self._bar = bar
        self._total, self._epochs, self._steps, self._tested = total, 1, 1, ""
        self._running = ""
        self._reason: str | None = None

    def run_begun(self, job: Job) -> None:
        self._tested = ""
        self._running = self._name(job)
        self._bar.update(self._running, 0, 1)

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps = recipe.epochs, steps_per_epoch
        self._show(epochs_done)

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        self._show(epoch - 1 + step / self._steps, f"loss {loss:.3f}")

    def epoch_done(self, row: dict[str, Any]) -> None:
        self._tested = f"  test {row['test_accuracy']:.2f}%  {row['seconds']:.1f} s"
        self._show(row["epoch"])

    def run_ended(self, result: Result) -> None:
        outcome = _outcome(result, self._reason)
        self._bar.print(f"{self._name(result.job, seed=not result.no_data)}  {outcome}")
        self._reason = result.reason

    def _show(self, done: float, loss: str = "") -> None:
        state = f"epoch {min(int(done) + 1, self._epochs)}/{self._epochs}  {loss}{self._tested}"
        self._bar.update(self._running, done, self._epochs, state)

    def _name(self, job: Job, seed: bool = True) -> str:
        return f"{job.position}/{self._total}  {job.row.label}{f', seed {job.seed}' if seed else ''}"


def _outcome(result: Result, last_reason: str | None) -> str:
    outcome = result.outcome
    if outcome is None:
        return f"not run here ({'as above' if result.reason == last_reason else result.reason})"
    epochs = f"{outcome.epochs} epoch{'s' if outcome.epochs > 1 else ''}"
    earlier = "  finished earlier" if result.earlier else ""
    return f"{outcome.accuracy:.2f}% after {epochs}  {console.clock(outcome.seconds)}{earlier}"


def _command(table: str, flags: dict[str, Any]) -> str:
    given = [[flag] if value is True else [flag, str(value)] for flag, value in flags.items() if value]
    return shlex.join(["torchadder", "reproduce", table, *chain(*given)])

"""torchadder train: train a recipe into a run directory, or continue the run that is there."""

import json as json_format
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from torchadder.cli import console
from torchadder.cli.options import WORKERS, with_recipe_options
from torchadder.data import list_datasets
from torchadder.errors import UserError
from torchadder.lab import report as page
from torchadder.lab.runs import TrainedRun
from torchadder.train import RECIPES, Outcome, Progress, Run, default_folder, get_recipe
from torchadder.train import train as train_run
from torchadder.train.distributed import joined, restarts
from torchadder.train.recipe import ADDER, GRADIENTS, IMAGES, Recipe
from torchadder.train.run import holds_run, saved_recipe
from torchadder.train.tensorboard import TensorBoard

_RECIPES = ", ".join(sorted(RECIPES))


@with_recipe_options
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=f"One of: {_RECIPES}.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run (default runs/RECIPE-OP-sSEED).", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the data files (default: $TORCHADDER_DATA, the cache, or fetched)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help=WORKERS, show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder; its recipe is kept.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard into the folder of the run.")
    ] = False,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help='End with a page about the run in its folder (default: where "torchadder[report]" is installed).',
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
    *,
    changes: dict[str, Any],
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Other images than the recipe's: {', '.join(list_datasets())}.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None,
    grad: Annotated[
        str | None,
        typer.Option(
            help="Both gradients of the adder layers: full (weight full, input hardtanh) or sign (both).",
            rich_help_panel=ADDER,
        ),
    ] = None,
) -> None:
    """Train RECIPE, on a GPU if there is one; everything about the run lands in one folder.

    A run that was interrupted continues with --resume to the same numbers.

    torchrun --nproc-per-node N -m torchadder train RECIPE ... trains in N processes, which share each batch.
    """
    changes.update(_gradients(grad, changes))
    if dataset is not None:
        changes["dataset"] = dataset
    stream = sys.stderr if json else sys.stdout
    with joined() as processes:
        run = processes.open(lambda: _open(recipe, changes, out, resume))
        if run.finished and processes.first:
            print(f"{run.folder} is finished: all {run.epoch} epochs are done", file=stream)
        try:
            with console.progress(stream) if processes.first else nullcontext(Progress()) as progress:
                shown = TensorBoard(run.folder, progress) if tensorboard and processes.first else progress
                outcome = train_run(run, data_dir=data, progress=shown, processes=processes, workers=workers)
        except KeyboardInterrupt:
            console.error(_interrupted(run, recipe, data, tensorboard))
            raise typer.Exit(130) from None
    if processes.first:
        print(json_format.dumps(asdict(outcome)) if json else _describe(outcome))
        if page.is_installed() if report is None else report:
            _report(run.folder, data, stream)


def _open(recipe: str, changes: dict[str, Any], out: Path | None, resume: bool) -> Run:
    chosen = get_recipe(recipe, changes)
    folder = out or default_folder(chosen)
    if resume and holds_run(folder):  # flags that are not given keep the run's values
        chosen = Recipe(**{**asdict(saved_recipe(folder)), "name": recipe, **changes})
    return Run.open(folder, chosen, resume=resume or (restarts() and holds_run(folder)))


def _gradients(grad: str | None, changes: dict[str, Any]) -> dict[str, str]:
    if grad is None:
        return {}
    if grad not in GRADIENTS:
        raise UserError(f"--grad {grad} is out of range: expected {' or '.join(GRADIENTS)}")
    for flag in ("weight_grad", "input_grad"):
        if flag in changes:
            raise UserError(f"--grad sets --{flag.replace('_', '-')} as well: give one of the two")
    return GRADIENTS[grad]


def _interrupted(run: Run, recipe: str, data: Path | None, tensorboard: bool) -> str:
    if not holds_run(run.folder):
        return "interrupted before training began; nothing was written"
    saved = f"interrupted; {run.epoch}/{run.recipe.epochs} epochs are saved"
    if run.processes > 1:
        return f"{saved}, continue with the same command and --resume"
    command = ["torchadder", "train", recipe, "--out", str(run.folder), "--resume"]
    command += ["--data", str(data)] if data else []
    command += ["--tensorboard"] if tensorboard else []
    return f"{saved}, continue with: {shlex.join(command)}"


def _report(folder: Path, data: Path | None, stream: TextIO) -> None:
    """A page that cannot be made is no failure of the training."""
    path = folder / "report.html"
    try:
        page.write([TrainedRun.read(folder)], path, data_dir=data, test=None)
        print(f"report: {path}", file=stream)
    except UserError as error:
        print(f"no report: {error}", file=stream)


def _describe(outcome: Outcome) -> str:
    epochs = f"{outcome.epochs} epoch{'s' if outcome.epochs > 1 else ''}"
    best = f"best {outcome.best_accuracy:.2f}% in epoch {outcome.best_epoch}"
    time = console.clock(outcome.seconds)
    return f"test accuracy {outcome.accuracy:.2f}% after {epochs} ({best}) · {time} · {outcome.out}"

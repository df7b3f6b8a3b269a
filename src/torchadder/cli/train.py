"""Run `torchadder train`: train a recipe into a run directory, or continue the run that is there."""

from __future__ import annotations

import json as json_format
import re
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TextIO

import typer

from torchadder.cli import console
from torchadder.cli.options import DATASETS, DataFolder, Json, Workers, with_recipe_options
from torchadder.errors import UserError
from torchadder.train import RECIPES, Progress, Recipe, get_recipe
from torchadder.train.recipe import ADDER, GRADIENTS, IMAGES

if TYPE_CHECKING:
    import torch

    from torchadder.models import Model
    from torchadder.train import Outcome, Run

_RECIPES = ", ".join(sorted(RECIPES))


@with_recipe_options
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=f"One of: {_RECIPES}.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run (default: runs/RECIPE-OP-sSEED).", show_default=False),
    ] = None,
    data: DataFolder = None,
    workers: Workers = None,
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
            help='Write a page about the run into its folder (default: if "torchadder[report]" is installed).',
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    *,
    changes: dict[str, Any],
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Other images than those of the recipe: {', '.join(DATASETS)}.",
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
    """Train RECIPE, on a GPU if there is one; everything about the run is written into one folder.

    A run that was interrupted continues with --resume to the same numbers.

    torchrun --nproc-per-node N -m torchadder train RECIPE ... trains in N processes, which share each batch.
    """
    changes.update(_gradients(grad, changes))
    if dataset is not None:
        changes["dataset"] = dataset
    chosen = get_recipe(recipe, changes)  # before torch is imported: a mistake is reported at once

    from torchadder.lab import report as page
    from torchadder.train import train as train_run
    from torchadder.train.distributed import joined
    from torchadder.train.progress import TensorBoard

    stream = sys.stderr if json else sys.stdout
    with joined() as processes:
        run = processes.open(lambda: _open(chosen, changes, out, resume))
        if run.finished and processes.first:
            print(f"{run.folder} is finished: all {run.epoch} epochs are done", file=stream)
        try:
            with TrainingProgress(stream) if processes.first else nullcontext(Progress()) as progress:
                shown = TensorBoard(run.folder, progress) if tensorboard and processes.first else progress
                outcome = train_run(run, data_dir=data, progress=shown, processes=processes, workers=workers)
        except KeyboardInterrupt:
            console.error(_interrupted(run, recipe, data, tensorboard))
            raise typer.Exit(130) from None
    if processes.first:
        print(json_format.dumps(asdict(outcome)) if json else _describe(outcome))
        if page.is_installed() if report is None else report:
            _report(run.folder, data, stream)


def _open(recipe: Recipe, changes: dict[str, Any], out: Path | None, resume: bool) -> Run:
    from torchadder.train.distributed import restarts
    from torchadder.train.run import Run, default_folder, holds_run, saved_recipe

    folder = out or default_folder(recipe)
    if resume and holds_run(folder):  # flags that are not given keep the values of the run
        recipe = Recipe(**{**asdict(saved_recipe(folder)), "name": recipe.name, **changes})
    return Run.open(folder, recipe, resume=resume or (restarts() and holds_run(folder)))


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
    from torchadder.train.run import holds_run

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
    """Write the page of a run. If that is impossible, say why: the training itself succeeded."""
    from torchadder.lab import report as page
    from torchadder.lab.runs import TrainedRun

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


class TrainingProgress(Progress):
    """Print a header, then the progress of training: a bar on a terminal, one line an epoch elsewhere.

    `epoch 12/50  loss 0.031  test 98.94%  3.4 s  21,000 images/s  eta 2:11`
    """

    def __init__(self, stream: IO[str]) -> None:
        self._bar = console.Bar(stream)
        self._epochs, self._first, self._steps = 0, 0, 1
        self._start, self._tested = 0.0, ""

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_per_epoch: int) -> None:
        self._epochs, self._first, self._steps = recipe.epochs, epochs_done, steps_per_epoch
        self._start = time.perf_counter()
        self._bar.print(header(recipe, model))
        if epochs_done:
            self._bar.print(f"continues after epoch {epochs_done}")
        self._bar.__enter__()
        self._show(epochs_done + 1, 0, "")

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        self._show(epoch, step, f"loss {loss:.3f}{self._tested}")

    def epoch_done(self, row: dict[str, Any]) -> None:
        epoch = row["epoch"]
        self._tested = f"  test {row['test_accuracy']:.2f}%  {row['seconds']:.1f} s"
        numbers = f"loss {row['train_loss']:.3f}{self._tested}  {row['images_per_second']:,.0f} images/s"
        if self._bar.live:
            self._show(epoch, self._steps, numbers)
        else:
            self._bar.print(f"epoch {epoch}/{self._epochs}  {numbers}  {self._eta(epoch)}")

    def warned(self, line: str) -> None:
        flags = re.sub(r"\b(\w+)=(\w+)", lambda match: f"--{match[1].replace('_', '-')} {match[2]}", line)
        self._bar.print(f"warning: {flags}")

    def _show(self, epoch: int, step: int, numbers: str) -> None:
        if self._bar.live:
            done = epoch - 1 + step / self._steps
            self._bar.update(f"epoch {epoch}/{self._epochs}", done, self._epochs, f"{numbers}  {self._eta(done)}")

    def _eta(self, epochs_done: float) -> str:
        done = epochs_done - self._first
        if done <= 0:
            return "eta -"
        left = (time.perf_counter() - self._start) / done * (self._epochs - epochs_done)
        return f"eta {console.clock(left)}"


def header(recipe: Recipe, model: Model) -> str:
    """Return `lenet5bn-mnist · adder · 61,710 parameters · 0 multiplications in 5 layers · kernels avx2 · ...`."""
    import torch.distributed as dist

    from torchadder.counts import summary

    counts = summary(model, model.input_size)
    layers = sum(not row.free for row in counts.rows)
    parts = [recipe.name, recipe.op, f"{counts.parameters:,} parameters"]
    parts += [f"{counts.mul:,} multiplications in {layers} layers"]
    if recipe.op == "adder":
        rate = {"alr": f"ALR eta {recipe.eta:g}", "ilr": f"ILR x{recipe.ilr_factor:g}", "plain": "plain rate"}
        parts += [rate[recipe.lr_scheme]]
        parts += ["trains in int8"] if recipe.numbers == "int8" else []
    parts += _device(recipe, next(model.parameters()).device)
    if dist.is_available() and dist.is_initialized():
        parts[-1] += f" in each of {dist.get_world_size()} processes"
    return " · ".join(parts)


def _device(recipe: Recipe, device: torch.device) -> list[str]:
    """Return the GPU of the run, or the kernels and the number of threads of the CPU."""
    import torch

    from torchadder import kernels
    from torchadder.environment import describe_gpu, title_of_gpu

    if device.type == "cuda":
        return [title_of_gpu(describe_gpu(device))]
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return [f"kernels {kernels.isa()}", count] if recipe.op == "adder" else [count]

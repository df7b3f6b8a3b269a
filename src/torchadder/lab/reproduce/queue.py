"""Train every row of a table with every seed, one run after the other, and continue after an interruption."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torchadder import files
from torchadder.data import load_dataset
from torchadder.errors import UserError
from torchadder.lab import record
from torchadder.lab.reproduce import runs
from torchadder.lab.reproduce.experiments import Experiment, Row
from torchadder.train import Outcome, Progress, Recipe, Run, train
from torchadder.train.run import holds_run

RUNS, RESULTS = Path("runs/reproduce"), Path("results")


@dataclass(frozen=True)
class Job:
    """Hold a row and a seed; ``position`` counts the jobs of the queue from 1."""

    position: int
    row: Row
    seed: int


@dataclass(frozen=True)
class Result:
    """Hold the outcome of a job, or the reason why there is none.

    ``earlier``: the run was finished before. ``no_data``: the reason is that the data set is not available; the other
    seeds of the row are then skipped.
    """

    job: Job
    outcome: Outcome | None = None
    earlier: bool = False
    reason: str | None = None
    no_data: bool = False


class Report(Progress):
    """Receive the progress of the queue and of each run. The base class prints nothing."""

    def run_begun(self, job: Job) -> None:
        """Note that ``job`` begins."""

    def run_ended(self, result: Result) -> None:
        """Note that a job is finished, was finished before, or cannot run."""


class Queue:
    """Run all rows of a table, seed by seed, so that every row has its first number early.

    A run is stored in ``out``/run_name, whatever its table: tables share the rows that they have in common. Runs with
    fewer epochs than the recipe are called shortened; they and their record are stored apart, in ``out``/epochs-N.

    Args:
        experiment: the table.
        seeds: number of seeds of each row (0, 1, ...); default: the table's.
        epochs: epochs of every run; default: the recipe's.
        out: folder of the runs.
        results: folder of the record; default: results/, for shortened runs their own folder.
        only: run the rows with this text in their label or recipe name.

    Raises UserError for more epochs than the recipe has or too few for it, and if ``only`` matches no row.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        seeds: int | None = None,
        epochs: int | None = None,
        out: Path = RUNS,
        results: Path | None = None,
        only: str = "",
    ):
        full = experiment.epochs
        if epochs is not None and not 1 <= epochs <= full:
            raise UserError(f"epochs={epochs} is out of range: expected 1 to {full}, the epochs of the full recipe")
        rows = [row for row in experiment.rows if only.lower() in f"{row.label} {row.recipe}".lower()]
        if not rows:
            labels = ", ".join(row.label for row in experiment.rows)
            raise UserError(f"only={only} matches no row of {experiment.name}: its rows are {labels}")
        self.experiment = experiment
        self.epochs = None if epochs == full else epochs  # None: the full recipe
        for row in rows:
            row.recipe_for(epochs=self.epochs)
        if self.epochs is None:
            self.folder, folder, name = out, RESULTS, experiment.name
        else:
            self.folder = folder = out / f"epochs-{epochs}"
            name = f"{experiment.name}-epochs-{epochs}"
        self.record_path = (results or folder) / f"reproduce-{name}.json"
        pairs = ((seed, row) for seed in range(seeds or experiment.seeds) for row in rows)
        self.jobs = [Job(position, row, seed) for position, (seed, row) in enumerate(pairs, start=1)]

    @property
    def shortened(self) -> dict[str, int] | None:
        """Return ``{"epochs": 2, "of": 50}``; None for the full recipe."""
        return None if self.epochs is None else {"epochs": self.epochs, "of": self.experiment.epochs}

    def run(self, data_dir: Path | None = None, report: Report | None = None) -> list[Result]:
        """Run every job that is not finished; a job that cannot run does not stop the others.

        The record is written after each run. After a KeyboardInterrupt, the next call continues from the last saved
        epoch. Raises UserError if the record cannot be written, before the first run if possible.
        """
        with suppress(OSError):  # check_writable names what stands in the way
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(self.record_path, name="results")
        report = report or Report()
        results: list[Result] = []
        reasons: dict[str, str | None] = {}
        for job in self.jobs:
            if any(result.no_data and result.job.row is job.row for result in results):
                continue
            report.run_begun(job)
            try:
                result = self._do(job, data_dir, report, reasons)
            except UserError as error:  # damaged, diverged, or of another recipe
                result = Result(job, reason=_one_line(error))
            report.run_ended(result)
            results.append(result)
            if result.outcome and (content := self.record()):
                record.write(self.record_path, content)
        return results

    def _do(self, job: Job, data_dir: Path | None, report: Report, reasons: dict[str, str | None]) -> Result:
        """Run one job. ``reasons`` caches for each data set why it is not available, or None if it is."""
        recipe = job.row.recipe_for(job.seed, self.epochs)
        folder = self.folder / run_name(recipe)
        run = Run.open(folder, recipe, resume=holds_run(folder))
        earlier = run.finished
        if not earlier:
            if recipe.dataset not in reasons:
                reasons[recipe.dataset] = _why_no_data(recipe, data_dir)
            if reason := reasons[recipe.dataset]:
                return Result(job, reason=reason, no_data=True)
            _reset_peak_memory()
            train(run, data_dir=data_dir, progress=report)
        runs.read_run(folder)  # raises for a run that a record cannot hold
        return Result(job, run.outcome(), earlier)

    def finished(self) -> Iterator[dict[str, Any]]:
        """Yield every finished run of the table in the folder, also of seeds and rows that the queue leaves out."""
        for row in self.experiment.rows:
            recipe = row.recipe_for(epochs=self.epochs)
            for folder in sorted(self.folder.glob(run_name(recipe).removesuffix("0") + "*")):
                with suppress(UserError):  # unfinished, damaged, of another recipe: `run` reports it
                    run = runs.read_run(folder)
                    recipe = replace(recipe, seed=run["seed"])
                    if folder.name == run_name(recipe) and Run.open(folder, recipe, resume=True).finished:
                        yield run

    def record(self) -> record.Record | None:
        """Return the record of the finished runs; None without one."""
        finished = list(self.finished())
        if not finished:
            return None
        return {**runs.assemble(finished), "table": self.experiment.name, "shortened": self.shortened}


def run_name(recipe: Recipe) -> str:
    """Return a name that is unique among the runs of all tables: ``lenet5bn-mnist-adder-full-alr-eta0.1-s0``."""
    parts = [recipe.model, re.sub(r"[^\w.]+", "-", recipe.dataset), recipe.op]
    if recipe.op == "adder":
        parts += [f"{runs.gradients(asdict(recipe))}", recipe.lr_scheme]
        parts += [f"eta{recipe.eta:g}"] if recipe.lr_scheme == "alr" else []
        parts += [recipe.numbers] if recipe.numbers != "float32" else []
    return "-".join([*parts, f"s{recipe.seed}"])


def _why_no_data(recipe: Recipe, data_dir: Path | None) -> str | None:
    try:
        load_dataset(recipe.dataset, data_dir)
    except UserError as error:
        return _one_line(error)
    return None


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())


def _reset_peak_memory() -> None:
    """Reset the peak memory of this process on Linux, after returning what malloc keeps to the system."""
    gc.collect()
    with suppress(AttributeError):  # glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")

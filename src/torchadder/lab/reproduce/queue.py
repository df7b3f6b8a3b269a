"""The queue: every row of a table with every seed, one run after the other, taken up again where it stopped."""

from __future__ import annotations

import ctypes
import gc
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torchadder.data import load_dataset
from torchadder.errors import UserError
from torchadder.lab.bench import record as files
from torchadder.lab.reproduce import record
from torchadder.lab.reproduce.experiments import Experiment, Row
from torchadder.train import Outcome, Progress, Recipe, Run, train
from torchadder.train.run import holds_run

RUNS, RESULTS = Path("runs/reproduce"), Path("results")


@dataclass(frozen=True)
class Job:
    """A row with a seed; ``position`` counts the jobs of the queue from 1."""

    position: int
    row: Row
    seed: int


@dataclass(frozen=True)
class Result:
    """What became of a job: its outcome, ``earlier`` if it was finished before, or the reason why there is none.

    ``no_data``: the reason is that the data cannot be had, and the row's other seeds are left out.
    """

    job: Job
    outcome: Outcome | None = None
    earlier: bool = False
    reason: str | None = None
    no_data: bool = False


class Report(Progress):
    """What the queue tells, beside what each run tells as it trains. The base class is silent."""

    def run_begun(self, job: Job) -> None:
        """The job is next."""

    def run_ended(self, result: Result) -> None:
        """The job is done, was done before, or cannot be done."""


class Queue:
    """The runs of a table: seed by seed, so that every row has its first number early.

    A run lies in OUT/run_name, whichever table it is for: tables share the rows that they have in common. With fewer
    epochs than the recipe has, runs and record are called shortened and lie apart, in OUT/epochs-N.

    Args:
        experiment: the table.
        seeds: seeds 0, 1, ... of each row; default the table's own number.
        epochs: of every run; default the recipe's.
        out: folder of the runs.
        results: folder of the record; default results/, and the runs' own folder for shortened runs.
        only: take the rows that have this in their label or the name of their recipe.

    Raises UserError for more epochs than the recipe has or too few for it, and where ``only`` leaves no row.
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
            raise UserError(f"--epochs {epochs} is out of range: expected 1 to {full}, which the full recipe has")
        rows = [row for row in experiment.rows if only.lower() in f"{row.label} {row.recipe}".lower()]
        if not rows:
            labels = ", ".join(row.label for row in experiment.rows)
            raise UserError(f"--only {only}: no row of {experiment.name} has that in its name; it has {labels}")
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
        """``{"epochs": 2, "of": 50}``; None for the full recipe."""
        return None if self.epochs is None else {"epochs": self.epochs, "of": self.experiment.epochs}

    def run(self, data_dir: Path | None = None, report: Report | None = None) -> list[Result]:
        """Do every job that is not done yet; what one of them lacks does not keep the others from running.

        The record is written whenever a run is finished. KeyboardInterrupt goes through: every epoch that was saved
        is kept, and the next call goes on from there. Raises UserError where the record cannot be written, before
        the first run if that can be known.
        """
        self._check_record_path()
        report = report or Report()
        results: list[Result] = []
        reasons: dict[str, str | None] = {}
        for job in self.jobs:
            if any(result.no_data and result.job.row is job.row for result in results):
                continue
            report.run_begun(job)
            try:
                result = self._do(job, data_dir, report, reasons)
            except UserError as error:  # damaged, diverged, of another recipe
                result = Result(job, reason=_one_line(error))
            report.run_ended(result)
            results.append(result)
            if result.outcome:
                self._write()
        return results

    def _do(self, job: Job, data_dir: Path | None, report: Report, reasons: dict[str, str | None]) -> Result:
        """``reasons``: data set -> why it cannot be had, or None where it can; found out once for each."""
        recipe = job.row.recipe_for(job.seed, self.epochs)
        folder = self.folder / run_name(recipe)
        run = Run.open(folder, recipe, resume=holds_run(folder))
        earlier = run.finished
        if not earlier:
            if recipe.dataset not in reasons:
                reasons[recipe.dataset] = _why_no_data(recipe, data_dir)
            if reason := reasons[recipe.dataset]:
                return Result(job, reason=reason, no_data=True)
            _forget_peak_memory()
            train(run, data_dir=data_dir, progress=report)
        record.read_run(folder)  # one that cannot be counted is no outcome
        return Result(job, run.outcome(), earlier)

    def finished(self) -> Iterator[dict[str, Any]]:
        """Every finished run of the table in the folder, those of other seeds and rows than the queue's included."""
        for row in self.experiment.rows:
            recipe = row.recipe_for(epochs=self.epochs)
            for folder in sorted(self.folder.glob(run_name(recipe).removesuffix("0") + "*")):
                with suppress(UserError):  # unfinished, damaged, of another recipe: run says so
                    run = record.read_run(folder)
                    recipe = replace(recipe, seed=run["seed"])
                    if folder.name == run_name(recipe) and Run.open(folder, recipe, resume=True).finished:
                        yield run

    def record(self) -> record.Record | None:
        """The record of the finished runs; None where there is none."""
        runs = list(self.finished())
        if not runs:
            return None
        return {**record.assemble(runs), "table": self.experiment.name, "shortened": self.shortened}

    def _write(self) -> None:
        content = self.record()
        if content is not None:
            try:
                files.write(self.record_path, content)
            except OSError as error:
                raise self._unwritable(error) from error

    def _check_record_path(self) -> None:
        """Raises UserError where the record cannot be written, before hours are spent on its runs."""
        try:
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.record_path.parent).close()
            if self.record_path.is_dir():
                raise IsADirectoryError(f"{self.record_path.name} is a folder")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"cannot write {self.record_path} ({reason}): choose another place with --results")


def run_name(recipe: Recipe) -> str:
    """``lenet5bn-mnist-adder-full-alr-eta0.1-s0``: what tells the runs of all tables apart."""
    parts = [recipe.model, re.sub(r"[^\w.]+", "-", recipe.dataset), recipe.op]
    if recipe.op == "adder":
        parts += [f"{record.gradients(asdict(recipe))}", recipe.lr_scheme]
        parts += [f"eta{recipe.eta:g}"] if recipe.lr_scheme == "alr" else []
    return "-".join([*parts, f"s{recipe.seed}"])


def _why_no_data(recipe: Recipe, data_dir: Path | None) -> str | None:
    try:
        load_dataset(recipe.dataset, data_dir)
    except UserError as error:
        return _one_line(error)
    return None


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())


def _forget_peak_memory() -> None:
    """Let the peak of the next run be its own, where the system can: what malloc holds on to would count as well."""
    gc.collect()
    with suppress(AttributeError):  # glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")

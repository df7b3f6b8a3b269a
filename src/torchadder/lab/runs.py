"""Read run directories for figures and reports; nothing is written into them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder.data import Dataset, load_dataset
from torchadder.errors import UserError
from torchadder.models import Model
from torchadder.models.checkpoint import LAST, read_checkpoint
from torchadder.train.recipe import Recipe
from torchadder.train.run import ENVIRONMENT, Run, holds_run, saved_recipe


@dataclass(frozen=True)
class TrainedRun:
    """Hold the contents of a run directory with at least one finished epoch.

    ``metrics``: one dictionary per epoch, as the training loop wrote them (accuracies in percent).
    """

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TrainedRun:
        """Read ``folder``. Raises UserError if it holds no run, a damaged run, or a run without a finished epoch."""
        if not holds_run(folder):
            raise UserError(f"{folder} holds no run: expected a folder that a training run wrote")
        recipe = saved_recipe(folder)
        if not (folder / LAST).is_file():
            raise UserError(
                f"{folder} has no checkpoint ({LAST}): its first epoch is not finished, or the file was moved"
            )
        metrics = Run.open(folder, recipe, resume=True).metrics()
        if not metrics:
            raise UserError(f"{folder} has a checkpoint and no metrics: metrics.jsonl is missing or damaged")
        try:
            environment = json.loads((folder / ENVIRONMENT).read_text())
        except (OSError, ValueError):
            environment = {}
        return cls(folder, recipe, metrics, environment if isinstance(environment, dict) else {})

    def model(self) -> Model:
        """Return the model of the last epoch, in evaluation mode on the CPU."""
        return read_checkpoint(self.folder / LAST)[0]

    def dataset(self, data_dir: Path | None = None) -> Dataset:
        """Load the data set of the run. Raises UserError if it cannot be found or read."""
        recipe = self.recipe
        return load_dataset(recipe.dataset, data_dir, partial=recipe.partial, on_error=recipe.on_error)

    @property
    def network(self) -> str:
        """Return "AdderNet", "CNN" or "BNN"."""
        return {"adder": "AdderNet", "conv": "CNN", "binary": "BNN"}[self.recipe.op]

    @property
    def title(self) -> str:
        """Return operator, gradient and learning-rate scheme: "AdderNet, full gradient, ALR, eta 0.1", or "CNN"."""
        recipe = self.recipe
        if recipe.op != "adder":
            return self.network
        rate = recipe.lr_scheme.upper() if recipe.lr_scheme != "plain" else "plain rate"
        eta = f", eta {recipe.eta:g}" if recipe.lr_scheme == "alr" else ""
        numbers = f", {recipe.numbers}" if recipe.numbers != "float32" else ""
        return f"{self.network}, {recipe.weight_grad} gradient, {rate}{eta}{numbers}"


def titles(runs: list[TrainedRun]) -> list[str]:
    """Return a different title for each run: network, data set, epochs, seed or folder is added where they differ."""
    found = [run.title for run in runs]
    more = [
        [run.recipe.model for run in runs],
        [run.recipe.dataset for run in runs],
        [f"{run.recipe.epochs} epochs" for run in runs],
        [f"seed {run.recipe.seed}" for run in runs],
        [run.folder.name for run in runs],
        [str(run.folder) for run in runs],
    ]
    for values in more:
        if len(set(found)) == len(runs):
            break
        if len(set(values)) > 1:
            found = [f"{title}, {value}" for title, value in zip(found, values, strict=True)]
    return found


def several_networks(runs: list[TrainedRun]) -> str | None:
    """Return the reason why the layers of ``runs`` cannot be compared; None if all runs are of one network."""
    names = sorted({run.recipe.model for run in runs})
    if len(names) == 1:
        return None
    return f"{' and '.join(names)} have different layers, which do not compare: name runs of one network"


def _silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


class FigureInputs:
    """Hold what figures are computed from: runs with their titles, and each data set loaded once.

    Args:
        runs: the runs that a figure shows side by side.
        data_dir: folder with the data files; None for the default places.
        iterations: number of training iterations of each run whose gradients are measured.
        progress: called with a description of the current work, the parts of it that are done, and their total.
    """

    def __init__(
        self,
        runs: list[TrainedRun],
        *,
        data_dir: Path | None = None,
        iterations: int = 100,
        progress: Callable[[str, int, int], None] = _silent,
    ):
        self.runs, self.data_dir, self.iterations, self.progress = runs, data_dir, iterations, progress
        self._titles = titles(runs)
        self._datasets: dict[tuple[str, bool, str], Dataset] = {}

    def __iter__(self) -> Iterator[tuple[str, TrainedRun]]:
        """Iterate over (title, run)."""
        return iter(zip(self._titles, self.runs, strict=True))

    def dataset(self, run: TrainedRun) -> Dataset:
        """Return the data set of ``run``. Raises UserError if it cannot be found or read."""
        key = run.recipe.dataset, run.recipe.partial, run.recipe.on_error
        if key not in self._datasets:
            self._datasets[key] = run.dataset(self.data_dir)
        return self._datasets[key]

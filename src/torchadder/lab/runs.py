"""Runs that are looked at: what a run directory says of a training, read and never written."""

from __future__ import annotations

import json
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
    """A run directory with at least one finished epoch.

    ``metrics``: one dictionary an epoch, as the training loop wrote them (accuracies in percent).
    """

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TrainedRun:
        """Raises UserError where ``folder`` holds no run, a damaged one, or one without a finished epoch."""
        if not holds_run(folder):
            raise UserError(f"{folder} holds no run: name a folder that torchadder train wrote")
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
        """The model of the last epoch, in evaluation mode on the CPU."""
        return read_checkpoint(self.folder / LAST)[0]

    def dataset(self, data_dir: Path | None = None) -> Dataset:
        """The images that it was trained and tested on. Raises UserError where they cannot be had."""
        recipe = self.recipe
        return load_dataset(recipe.dataset, data_dir, partial=recipe.partial, on_error=recipe.on_error)

    @property
    def title(self) -> str:
        """What tells it from other runs of the model, in the paper's words: "AdderNet, full gradient, ALR, eta 0.1"."""
        recipe = self.recipe
        if recipe.op != "adder":
            return {"conv": "CNN", "binary": "BNN"}[recipe.op]
        rate = recipe.lr_scheme.upper() if recipe.lr_scheme != "plain" else "plain rate"
        eta = f", eta {recipe.eta:g}" if recipe.lr_scheme == "alr" else ""
        return f"AdderNet, {recipe.weight_grad} gradient, {rate}{eta}"


def titles(runs: list[TrainedRun]) -> list[str]:
    """A title for each, no two alike: network, data set, epochs, seed and folder join where they differ."""
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

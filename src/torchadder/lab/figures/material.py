"""What figures are made of: trained runs with their titles, and the images of each data set loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torchadder.data import Dataset
from torchadder.lab.runs import TrainedRun, titles


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody how far the work is."""


class Material:
    """The runs of a figure, and what else decides it.

    ``data_dir`` as --data; ``iterations``: how many of each run's recipe the gradients are taken of; ``tell`` is
    called with what is going on, and how much of how much of it is done.
    """

    def __init__(
        self,
        runs: list[TrainedRun],
        *,
        data_dir: Path | None = None,
        iterations: int = 100,
        tell: Callable[[str, int, int], None] = silent,
    ):
        self.runs, self.data_dir, self.iterations, self.tell = runs, data_dir, iterations, tell
        self._titles = titles(runs)
        self._datasets: dict[tuple[str, bool, str], Dataset] = {}

    def __iter__(self) -> Iterator[tuple[str, TrainedRun]]:
        """Each run after its title."""
        return iter(zip(self._titles, self.runs, strict=True))

    def dataset(self, run: TrainedRun) -> Dataset:
        """The images of ``run``. Raises UserError where they cannot be had."""
        key = run.recipe.dataset, run.recipe.partial, run.recipe.on_error
        if key not in self._datasets:
            self._datasets[key] = run.dataset(self.data_dir)
        return self._datasets[key]


def several_networks(runs: list[TrainedRun]) -> str | None:
    """Why the layers of ``runs`` cannot stand side by side; None where they can."""
    names = sorted({run.recipe.model for run in runs})
    if len(names) == 1:
        return None
    return f"{' and '.join(names)} have different layers, which do not compare: name runs of one network"

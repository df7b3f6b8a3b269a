"""Training: recipes, the loop, and the run directory that everything lands in."""

from typing import TYPE_CHECKING

from torchadder.train.progress import Progress
from torchadder.train.recipe import RECIPES, Recipe, get_recipe

if TYPE_CHECKING:
    from torchadder.train.loop import Scores, evaluate, train
    from torchadder.train.run import Outcome, Run, default_folder
else:  # the command line reads the recipes for its help, and must not wait for torch
    from torchadder.lazy import import_on_use

    _LOOP, _RUN = ("Scores", "evaluate", "train"), ("Outcome", "Run", "default_folder")
    __getattr__ = import_on_use(
        __name__,
        {**dict.fromkeys(_LOOP, "torchadder.train.loop"), **dict.fromkeys(_RUN, "torchadder.train.run")},
    )

__all__ = [
    "RECIPES",
    "Outcome",
    "Progress",
    "Recipe",
    "Run",
    "Scores",
    "default_folder",
    "evaluate",
    "get_recipe",
    "train",
]

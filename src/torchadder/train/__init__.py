"""Train networks by recipes, each run in a directory of its own."""

from typing import TYPE_CHECKING

from .progress import Progress
from .recipe import RECIPES, Recipe, get_recipe

if TYPE_CHECKING:
    from .loop import Scores, evaluate, train
    from .run import Outcome, Run, default_folder
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

"""Training: recipes, the loop, and the run directory that everything lands in."""

from torchadder.train.loop import Scores, evaluate, train
from torchadder.train.progress import Progress
from torchadder.train.recipe import RECIPES, Recipe, get_recipe
from torchadder.train.run import Outcome, Run, default_folder

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

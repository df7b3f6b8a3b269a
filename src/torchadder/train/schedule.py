"""The learning rate of every step: a linear warm-up, then a cosine, a polynomial or stairs."""

from __future__ import annotations

import math

from torchadder.train.recipe import Recipe

STAIR = 0.1  # what --schedule step multiplies the rate by at each milestone


def rate_at(recipe: Recipe, step: int, steps_an_epoch: int) -> float:
    """The learning rate of ``step`` (0, 1, ... over all epochs of ``recipe``).

    It rises in a line to ``recipe.lr``, reached with the last step of the warm-up; what remains of the run is the
    schedule's: cosine and polynomial fall to 0, which only the step after the last would have.
    """
    warmup = recipe.warmup_epochs * steps_an_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done, total = step - warmup, recipe.epochs * steps_an_epoch - warmup
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done / total))
    if recipe.schedule == "polynomial":
        return recipe.lr * (1 - done / total) ** recipe.power
    passed = sum(step >= epoch * steps_an_epoch for epoch in recipe.milestone_epochs)
    return recipe.lr * STAIR**passed

"""Progress: what the training loop tells while it runs. The base class is silent; the command line draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchadder.train.recipe import Recipe

if TYPE_CHECKING:
    from torchadder.models import Model


class Progress:
    """Called by the loop: started once, then stepped many times and epoch_done once in every epoch."""

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_an_epoch: int) -> None:
        """Training begins, or continues after ``epochs_done`` epochs."""

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        """``step`` steps of ``epoch`` (both counted from 1) are done; ``loss`` is their mean."""

    def epoch_done(self, row: dict[str, Any]) -> None:
        """An epoch is trained, tested and saved; ``row`` is its line in metrics.jsonl."""

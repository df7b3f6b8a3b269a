"""Receive the progress of a training run: ignore it, or write curves for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.errors import UserError

from .recipe import Recipe

if TYPE_CHECKING:
    from torchadder.models import Model

FOLDER = "tensorboard"  # in the run directory
CURVES = {  # column of metrics.jsonl -> name of the curve
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "lr": "lr",
    "images_per_second": "images_per_second",
}


class Progress:
    """Receive the progress of a training run. This class ignores it; a subclass shows it.

    The loop calls ``started`` once, then ``stepped`` many times and ``epoch_done`` once in every epoch, and
    ``warned`` after it where something looks wrong.
    """

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_per_epoch: int) -> None:
        """Show that training begins, or continues after ``epochs_done`` epochs."""

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        """Show that ``step`` steps of ``epoch`` (both counted from 1) are done; ``loss`` is their mean."""

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Show that an epoch is trained, tested and saved; ``row`` is its line in metrics.jsonl."""

    def warned(self, line: str) -> None:
        """Show a warning about the epoch that is done."""


class TensorBoard(Progress):
    """Write the curves into ``folder``/tensorboard, one point for each epoch, and pass every call on to ``shown``.

    A resumed run replaces the points of epochs after its last state, which a killed run may have written.

    Raises UserError where tensorboard is not installed.
    """

    def __init__(self, folder: Path, shown: Progress):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError('TensorBoard needs the package tensorboard: pip install "torchadder[log]"') from error
        self._new_writer: Any = SummaryWriter
        self._folder, self._shown = folder / FOLDER, shown

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_per_epoch: int) -> None:
        self._writer = self._new_writer(str(self._folder), purge_step=epochs_done + 1)
        self._shown.started(recipe, model, epochs_done, steps_per_epoch)

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        self._shown.stepped(epoch, step, loss)

    def epoch_done(self, row: dict[str, Any]) -> None:
        for column, curve in CURVES.items():
            self._writer.add_scalar(curve, row[column], row["epoch"])
        self._writer.flush()
        self._shown.epoch_done(row)

    def warned(self, line: str) -> None:
        self._shown.warned(line)

"""What the command line prints: errors, the header of a run, and its progress as a bar or as plain lines."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from torchadder import kernels
from torchadder.counts import summary
from torchadder.environment import describe_gpu, title_of_gpu
from torchadder.models import Model
from torchadder.train import Progress, Recipe
from torchadder.train.distributed import tell_once


def error(message: str) -> None:
    """One line on stderr, of several processes by the first that comes here."""
    tell_once(lambda: print(f"error: {message}", file=sys.stderr, flush=True))


def progress(stream: IO[str]) -> Lines:
    """Progress on ``stream``: a bar where it is a terminal, a line an epoch elsewhere."""
    terminal = Console(file=stream)
    return Bar(terminal) if terminal.is_terminal else Lines(stream)


class Lines(Progress):
    """A header, then one plain line an epoch.

    ``epoch 12/50  loss 0.031  test 98.94%  3.4 s  21,000 images/s  eta 2:11``
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream
        self._epochs, self._first = 0, 0
        self._start = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was; twice does no harm."""

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_an_epoch: int) -> None:
        self._epochs, self._first = recipe.epochs, epochs_done
        self._start = time.perf_counter()
        self._print(header(recipe, model))
        if epochs_done:
            self._print(f"continues after epoch {epochs_done}")

    def epoch_done(self, row: dict[str, Any]) -> None:
        self._print(f"epoch {row['epoch']}/{self._epochs}  {self._numbers(row)}  {self._eta(row['epoch'])}")

    def _numbers(self, row: dict[str, Any]) -> str:
        speed = f"{row['images_per_second']:,.0f} images/s"
        return f"loss {row['train_loss']:.3f}  test {row['test_accuracy']:.2f}%  {row['seconds']:.1f} s  {speed}"

    def _eta(self, epochs_done: float) -> str:
        done = epochs_done - self._first
        if done <= 0:
            return "eta -"
        left = (time.perf_counter() - self._start) / done * (self._epochs - epochs_done)
        return f"eta {clock(left)}"

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Bar(Lines):
    """The same numbers on one line that stays in place."""

    def __init__(self, terminal: Console):
        super().__init__(terminal.file)
        columns = (TextColumn("{task.fields[epoch]}"), BarColumn(20), TextColumn("{task.fields[numbers]}"))
        self._bar = RichProgress(*columns, console=terminal)
        self._task = self._bar.add_task("", epoch="", numbers="")
        self._steps, self._tested = 1, ""

    def started(self, recipe: Recipe, model: Model, epochs_done: int, steps_an_epoch: int) -> None:
        super().started(recipe, model, epochs_done, steps_an_epoch)
        self._steps = steps_an_epoch
        self._bar.start()
        self._show(epochs_done + 1, 0, "")

    def stepped(self, epoch: int, step: int, loss: float) -> None:
        self._show(epoch, step, f"loss {loss:.3f}{self._tested}")

    def epoch_done(self, row: dict[str, Any]) -> None:
        self._tested = f"  test {row['test_accuracy']:.2f}%  {row['seconds']:.1f} s"
        self._show(row["epoch"], self._steps, self._numbers(row))

    def close(self) -> None:
        self._bar.stop()

    def _show(self, epoch: int, step: int, numbers: str) -> None:
        done = epoch - 1 + step / self._steps
        text = f"{numbers}  {self._eta(done)}"
        self._bar.update(
            self._task,
            total=self._epochs,
            completed=done,
            epoch=f"epoch {epoch}/{self._epochs}",
            numbers=text,
        )


def header(recipe: Recipe, model: Model) -> str:
    """``lenet5bn-mnist · adder · 61,710 parameters · 0 multiplications in 5 layers · kernels avx2 · ...``."""
    counts = summary(model, model.input_size)
    layers = sum(not row.free for row in counts.rows)
    parts = [recipe.name, recipe.op, f"{counts.parameters:,} parameters"]
    parts += [f"{counts.mul:,} multiplications in {layers} layers"]
    if recipe.op == "adder":
        rate = {"alr": f"ALR eta {recipe.eta:g}", "ilr": f"ILR x{recipe.ilr_factor:g}", "plain": "plain rate"}
        parts += [rate[recipe.lr_scheme]]
    parts += _where(recipe, next(model.parameters()).device)
    if dist.is_available() and dist.is_initialized():
        parts[-1] += f" in each of {dist.get_world_size()} processes"
    return " · ".join(parts)


def _where(recipe: Recipe, device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [title_of_gpu(describe_gpu(device))]
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return [f"kernels {kernels.isa()}", count] if recipe.op == "adder" else [count]


def printable(text: object) -> str:
    """A text that a file brought along, on one line and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:80]


def clock(seconds: float) -> str:
    """``2:11``, ``1:02:11``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

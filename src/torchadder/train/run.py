"""Keep the run directory of a training run: recipe, environment, metrics by epoch, last state and best model."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from torchadder import files
from torchadder.environment import describe_environment
from torchadder.errors import UserError
from torchadder.models import Model
from torchadder.models.checkpoint import LAST, Checkpoint, read_last, save_checkpoint

from .recipe import Recipe, differences

RECIPE, ENVIRONMENT, METRICS = "recipe.json", "environment.json", "metrics.jsonl"


@dataclass(frozen=True)
class Outcome:
    """Hold the result of a run so far. Quote ``accuracy``: that of the last epoch on the test split, in percent.

    ``best_accuracy`` is the highest of all epochs. Do not quote it: it is too high, because the test split chose it.
    """

    recipe: str
    op: str
    seed: int
    lr_scheme: str | None
    eta: float | None
    epochs: int
    accuracy: float
    best_accuracy: float
    best_epoch: int
    seconds: float
    out: str


def default_folder(recipe: Recipe) -> Path:
    """Return runs/RECIPE-OP-sSEED."""
    return Path("runs") / f"{recipe.name}-{recipe.op}-s{recipe.seed}"


class Run:
    """Keep a run directory open for training. ``begin`` is the first to write to it.

    The directory holds recipe.json, environment.json, metrics.jsonl (one line per epoch), last.pt (the state after the
    last epoch, from which a run resumes), best.safetensors and config.json. last.pt is replaced whole at the end of
    each epoch, after the other files, and ``begin`` drops the metrics of epochs after it. Therefore a run that is
    killed at any moment continues as if it had stopped at the end of its last epoch.
    """

    def __init__(self, folder: Path, recipe: Recipe, state: dict[str, Any] | None):
        self.folder, self.recipe, self.state = folder, recipe, state
        self.processes, self.writes = 1, True  # ``follow`` clears writes: one process writes
        self._new, self._locked = not holds_run(folder), -1  # a descriptor while the folder is locked
        self.epoch: int = state["epoch"] if state else 0
        self.best: dict[str, Any] = state["best"] if state else {"epoch": 0, "accuracy": -1.0}
        self._seconds: float = state["seconds"] if state else 0.0

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, *, resume: bool = False) -> Run:
        """Open a new run in ``folder``, or with ``resume`` the run that it holds.

        Raises UserError where a new run would overwrite one, where there is none to resume, where its recipe differs
        from ``recipe`` (the message names each field), and where its last.pt is damaged or lost.
        """
        if not resume:
            files.check_folder(folder)
            if holds_run(folder):
                if (folder / LAST).exists():
                    raise UserError(
                        f"{folder} already holds a run: continue it with resume=True, or choose another folder"
                    )
                raise UserError(
                    f"{folder} already holds a run, without a finished epoch: delete it, choose another folder, or "
                    "begin it again with resume=True"
                )
            return cls(folder, recipe, None)
        changed = differences(saved_recipe(folder), recipe)
        if changed:
            fields = ", ".join(f"{name} (run: {was}, now: {now})" for name, (was, now) in changed.items())
            raise UserError(
                f"cannot resume {folder} with another recipe: {fields}; keep the run's values, or start a new run in "
                "another folder"
            )
        last, metrics = folder / LAST, folder / METRICS
        # A run that was killed before its first last.pt begins anew; a longer one would lose what it has.
        if not last.exists() and metrics.exists() and metrics.read_bytes().count(b"\n") > 1:
            raise UserError(f"{folder} has lost its {LAST} and cannot continue: start a new run in another folder")
        return cls(folder, recipe, read_last(last) if last.exists() else None)

    @classmethod
    def follow(cls, folder: Path, recipe: Recipe, epoch: int) -> Run:
        """Open, for reading only, the run that another process has opened; ``epoch`` is the last one that it saved.

        Raises UserError where the folder has saved another epoch: then it is not the folder of that process.
        """
        last = folder / LAST
        run = cls(folder, recipe, read_last(last) if epoch and last.exists() else None)
        if run.epoch != epoch:
            raise UserError(f"{folder} is not the same for all processes: choose a folder that all machines share")
        run.writes = False
        return run

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def begin(self, device: torch.device) -> None:
        """Create the folder and its files, or restore those of a resumed run to its last state.

        The folder is then locked until ``close``, or the end of the process.

        ``device``: the device that the run is trained on. Raises UserError where another process has begun a run in
        the folder, or trains it.
        """
        if not self.writes:
            return
        if self._new and holds_run(self.folder):
            raise UserError(f"{self.folder} holds a run that another process has begun: choose another folder")
        about = {**describe_environment(device), "processes": self.processes}
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not holds_run(self.folder):
                (self.folder / METRICS).unlink(missing_ok=True)
                self._write_json(ENVIRONMENT, {**about, "resumed": []})
                # The recipe is written last, because a folder with a recipe counts as a run.
                files.write_bytes(self.folder / RECIPE, self.recipe.to_json().encode())
                self._new = False
                self._lock()
                return
            self._lock()
            environment = _read_json(self.folder / ENVIRONMENT)
            environment.setdefault("resumed", []).append({"after_epoch": self.epoch, **about})
            self._write_json(ENVIRONMENT, environment)
            kept = "".join(json.dumps(row) + "\n" for row in self.metrics())
            files.write_bytes(self.folder / METRICS, kept.encode())

    def _lock(self) -> None:
        """Keep other processes from writing into the folder: the epochs of two would be mixed."""
        self._locked = os.open(self.folder / RECIPE, os.O_RDWR)
        try:
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self.close()
            raise UserError(f"{self.folder} is in use: another process trains it; wait for it, or end it") from error
        except OSError:
            pass  # not every file system has locks

    def close(self) -> None:
        """Unlock the folder."""
        if self._locked >= 0:
            os.close(self._locked)
        self._locked = -1

    def end_epoch(self, row: dict[str, Any], model: Model, state: dict[str, Any]) -> None:
        """Save an epoch: its line of metrics, the model if it is the best so far, then last.pt.

        ``state``: what the loop needs in order to continue. Raises UserError where a file cannot be written; last.pt
        is then still that of the previous epoch.
        """
        epoch, accuracy = row["epoch"], row["test_accuracy"]
        better = accuracy > self.best["accuracy"]
        best = {"epoch": epoch, "accuracy": accuracy} if better else self.best
        about = {"dataset": self.recipe.dataset, "epoch": epoch, "accuracy": accuracy}
        seconds = self._seconds + row["seconds"]
        state = {
            **state,
            "checkpoint": asdict(Checkpoint(model.config, **about)),
            "model": model.state_dict(),
            "epoch": epoch,
            "best": best,
            "seconds": seconds,
        }
        if self.writes:
            with self._writing():
                with open(self.folder / METRICS, "a") as f:
                    f.write(json.dumps(row) + "\n")
                    f.flush()
                    files.sync(f.fileno())
                if better:
                    save_checkpoint(self.folder, model, **about)
                buffer = io.BytesIO()  # torch.save into a file raises a RuntimeError when the disk is full
                torch.save(state, buffer)
                files.write_bytes(self.folder / LAST, buffer.getvalue())
        self.state, self.epoch, self.best, self._seconds = state, epoch, best, seconds

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl up to the last saved epoch; skip incomplete ones, left by a kill."""
        path = self.folder / METRICS
        rows = {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
                rows[row["epoch"]] = row
            except (ValueError, KeyError, TypeError):
                continue
        return [rows[epoch] for epoch in sorted(rows) if epoch <= self.epoch]

    def outcome(self) -> Outcome:
        """Return the result so far. Raises UserError before the end of the first epoch."""
        if not self.state:
            raise UserError(f"{self.folder} has no finished epoch yet")
        adder = self.recipe.op == "adder"
        return Outcome(
            recipe=self.recipe.name,
            op=self.recipe.op,
            seed=self.recipe.seed,
            lr_scheme=self.recipe.lr_scheme if adder else None,
            eta=self.recipe.eta if adder and self.recipe.lr_scheme == "alr" else None,
            epochs=self.epoch,
            accuracy=self.state["checkpoint"]["accuracy"],
            best_accuracy=self.best["accuracy"],
            best_epoch=self.best["epoch"],
            seconds=self._seconds,
            out=str(self.folder),
        )

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        files.write_bytes(self.folder / name, (json.dumps(content, indent=2) + "\n").encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = f"the checkpoint of epoch {self.epoch} is intact" if self.epoch else "there is no checkpoint yet"
            again = "run again with resume=True" if holds_run(self.folder) else "run again"
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror or error}; {good}: make room or set permissions, "
                f"then {again}"
            ) from error


def holds_run(folder: Path) -> bool:
    """Say whether ``folder`` holds a run, finished or not."""
    return (folder / RECIPE).exists() or (folder / LAST).exists()


def saved_recipe(folder: Path) -> Recipe:
    """Read the recipe of the run in ``folder``. Raises UserError where there is none, or where it is damaged."""
    if not holds_run(folder):
        raise UserError(f"{folder} holds no run to resume: leave out resume=True, or choose the folder of a run")
    try:
        return Recipe.from_json((folder / RECIPE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / RECIPE}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):  # nothing in the run depends on this file; it is only for readers
        return {}
    return content if isinstance(content, dict) else {}


def rng_state() -> dict[str, Any]:
    """Return the states of torch's random generators, on the CPU and on all GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore ``rng_state``; leave out the GPUs where their number has changed."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

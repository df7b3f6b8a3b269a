"""The figures by name, and making them: measured first, then drawn from what was measured alone, then written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torchadder import files
from torchadder.environment import describe_environment
from torchadder.errors import UserError
from torchadder.lab.bench.record import portable_command, today
from torchadder.lab.figures import curves, drawing, features, filters, gradients, outputs, weights
from torchadder.lab.figures.material import Material
from torchadder.lab.runs import TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Kind(Protocol):
    """What the module of a figure has."""

    def refusal(self, runs: list[TrainedRun]) -> str | None:
        """Why ``runs`` cannot make it, as far as can be said before it is tried; None where they can."""

    def measure(self, material: Material) -> dict[str, Any]:
        """All that is drawn, as plain values for JSON. Raises UserError where it cannot be had."""

    def describe(self, data: dict[str, Any]) -> str:
        """Its headline numbers, on one line."""

    def draw(self, data: dict[str, Any]) -> Figure:
        """The picture of what ``measure`` found."""


FIGURES: dict[str, Kind] = {
    "features": features,
    "filters": filters,
    "weights": weights,
    "curves": curves,
    "gradients": gradients,
    "outputs": outputs,
}


class Made(NamedTuple):
    """A figure that was written: ``stem``.png, .svg and .json; ``line``: its headline numbers."""

    name: str
    stem: Path
    line: str
    data: dict[str, Any]


def make(material: Material, out: Path, names: Sequence[str] = ()) -> tuple[list[Made], dict[str, str]]:
    """Write the figures of those ``names``, or without any all that can be made, into the folder ``out``.

    Returns what was made, and of what was left out the reason by name.

    Raises UserError for an unknown name, a figure by name that cannot be made, where none can be, without
    matplotlib, and where ``out`` cannot be written.
    """
    for name in names:
        if name not in FIGURES:
            raise UserError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    drawing.check()
    refused = {name: reason for name in names or FIGURES if (reason := FIGURES[name].refusal(material.runs))}
    for name in names:
        if name in refused:
            raise UserError(f"{name}: {refused[name]}")
    _prepare(out)
    made = []
    for name in dict.fromkeys(names or FIGURES):
        if name in refused:
            continue
        try:
            data = FIGURES[name].measure(material)
        except UserError as error:
            if names:
                raise UserError(f"{name}: {error}") from error
            refused[name] = str(error)
            continue
        made.append(_write(name, data, material, out))
    if not made:
        raise UserError("no figure can be made: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return made, refused


def _prepare(out: Path) -> None:
    """Before minutes are spent."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error


def _write(name: str, data: dict[str, Any], material: Material, out: Path) -> Made:
    about = [{"title": title, "folder": run.folder.name, "recipe": asdict(run.recipe)} for title, run in material]
    environment = describe_environment()
    environment["command"] = portable_command(environment["command"])
    line = FIGURES[name].describe(data)
    record = {"figure": name, "date": today(), "environment": environment, "line": line, "runs": about, **data}
    text = json.dumps(record, allow_nan=False) + "\n"
    try:
        with drawing.styled():
            drawing.write(FIGURES[name].draw(data), out / name)
        files.write_bytes(out / f"{name}.json", text.encode())
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    return Made(name, out / name, line, data)

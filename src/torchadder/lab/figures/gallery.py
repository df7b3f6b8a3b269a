"""List the figures by name and write them: measure, draw from the measured data alone, write PNG, SVG and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torchadder import files
from torchadder.errors import UserError
from torchadder.lab.figures import curves, drawing, features, filters, gradients, outputs, weights
from torchadder.lab.record import date_and_environment
from torchadder.lab.runs import FigureInputs, TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureModule(Protocol):
    """Declare the four functions that the module of each figure has."""

    def unsupported(self, runs: list[TrainedRun]) -> str | None:
        """Return the reason why ``runs`` cannot make the figure, as far as it is known in advance, or None."""

    def measure(self, inputs: FigureInputs) -> dict[str, Any]:
        """Return all data of the figure as plain values for JSON. Raises UserError if it cannot be computed."""

    def describe(self, data: dict[str, Any]) -> str:
        """Return the main numbers of the data on one line."""

    def draw(self, data: dict[str, Any]) -> Figure:
        """Draw the data that ``measure`` returned."""


FIGURES: dict[str, FigureModule] = {
    "features": features,
    "filters": filters,
    "weights": weights,
    "curves": curves,
    "gradients": gradients,
    "outputs": outputs,
}


class FigureFiles(NamedTuple):
    """Name a figure that was written as ``stem``.png, .svg and .json; ``line`` holds its main numbers."""

    name: str
    stem: Path
    line: str


def write_figures(
    inputs: FigureInputs, out: Path, names: Sequence[str] = ()
) -> tuple[list[FigureFiles], dict[str, str]]:
    """Write the figures ``names``, or by default all that the runs can make, into the folder ``out``.

    Returns the figures that were written, and for each that was left out the reason, by name.

    Raises UserError for an unknown name, a named figure that cannot be made, runs that can make no figure at all, a
    missing matplotlib, and a folder that cannot be written.
    """
    for name in names:
        if name not in FIGURES:
            raise UserError(f"figure={name} is unknown: expected one of {', '.join(FIGURES)}")
    drawing.check_installed()
    reasons = {name: reason for name in names or FIGURES if (reason := FIGURES[name].unsupported(inputs.runs))}
    for name in names:
        if name in reasons:
            raise UserError(f"{name}: {reasons[name]}")
    _check_folder(out)
    written = []
    for name in dict.fromkeys(names or FIGURES):
        if name in reasons:
            continue
        try:
            data = FIGURES[name].measure(inputs)
        except UserError as error:
            if names:
                raise UserError(f"{name}: {error}") from error
            reasons[name] = str(error)
            continue
        written.append(_write(name, data, inputs, out))
    if not written:
        raise UserError("no figure can be made: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))
    return written, reasons


def _check_folder(out: Path) -> None:
    """Create ``out`` and write into it once, before minutes of computation are spent."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error


def _write(name: str, data: dict[str, Any], inputs: FigureInputs, out: Path) -> FigureFiles:
    about = [{"title": title, "folder": run.folder.name, "recipe": asdict(run.recipe)} for title, run in inputs]
    line = FIGURES[name].describe(data)
    record = {"figure": name, **date_and_environment(), "line": line, "runs": about, **data}
    text = json.dumps(record, allow_nan=False) + "\n"
    try:
        with drawing.styled():
            drawing.write(FIGURES[name].draw(data), out / name)
        files.write_bytes(out / f"{name}.json", text.encode())
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    return FigureFiles(name, out / name, line)

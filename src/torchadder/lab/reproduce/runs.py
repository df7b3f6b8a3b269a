"""Collect finished training runs into one record of results/, and read such records back."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torchadder.environment import title_of_gpu
from torchadder.errors import UserError
from torchadder.lab import record
from torchadder.lab.record import Record
from torchadder.lab.runs import TrainedRun
from torchadder.train.recipe import GRADIENTS, Recipe
from torchadder.train.run import METRICS

# Two runs are one measurement only if these are equal; where they differ, every run lists its own.
ENVIRONMENT_FIELDS = (
    *("processor", "platform", "torchadder", "torch", "numpy", "python", "threads", "processes", "kernels", "gpu"),
)
# The entries of a row that summarise all its runs.
MEASURED = (
    *("epochs", "n", "seeds", "mean", "std", "top5", "minutes"),
    *("seconds_per_epoch", "images_per_second", "peak_rss_mib", "threads"),
)
# The fields of a recipe without effect under an operator, under a scheme, or without a teacher.
UNUSED = {
    "products": ("lr_scheme", "eta", "ilr_factor", "weight_grad", "input_grad", "numbers"),
    "alr": ("ilr_factor",),
    "ilr": ("eta",),
    "plain": ("eta", "ilr_factor"),
    "no teacher": ("teacher", "progressive", "temperature", "logit_weight", "feature_weight"),
}


def effective(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that decide its numbers: without the seed, None where a field has no effect.

    A field that did not exist when ``recipe`` was written takes its default. A teacher is shortened to the last name
    of its path, because records are published.
    """
    known = {f.name: recipe.get(f.name, f.default) for f in fields(Recipe)}
    complete = {**known, **recipe}
    unused = UNUSED[complete["lr_scheme"] if complete["op"] == "adder" else "products"]
    if complete["teacher"]:
        complete["teacher"] = Path(complete["teacher"]).name or complete["teacher"]
    else:
        unused += UNUSED["no teacher"]
    return {name: None if name in unused else value for name, value in complete.items() if name != "seed"}


def read_run(folder: Path) -> dict[str, Any]:
    """Read one finished run: recipe, seed, final accuracy, cost, date, command and environment.

    Raises UserError for anything else than a finished run.
    """
    run = TrainedRun.read(folder)
    recipe, rows, environment = run.recipe, run.metrics, run.environment
    if len(rows) < recipe.epochs:
        raise UserError(
            f"{folder} is not finished ({len(rows)} of {recipe.epochs} epochs): continue it with resume=True"
        )
    try:
        return {
            "seed": recipe.seed,
            "accuracy": rows[-1]["test_accuracy"],
            "top5": rows[-1].get("test_top5_accuracy"),  # older versions did not measure it
            "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
            "minutes": sum(row["seconds"] for row in rows) / 60,
            "images_per_second": statistics.median(row["images_per_second"] for row in rows),
            "peak_rss_mib": max(row["peak_rss_mib"] for row in rows),
            "date": _date(folder / METRICS),
            "command": record.portable_command(environment["command"]),
            "environment": _environment(environment),
            "recipe": effective(asdict(recipe)),
            "folder": folder,
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no run of this version of torchadder ({error!r})") from error


def collect(folders: Sequence[Path]) -> Record:
    """Return the record of the runs in ``folders``, with a row for each recipe in order of appearance.

    Runs that differ in their seed only share a row. Raises UserError if a recipe has a seed twice.
    """
    return assemble([read_run(folder) for folder in folders])


def assemble(runs: Sequence[dict[str, Any]]) -> Record:
    """Return the record of one or more results of `read_run`. Raises UserError if a recipe has a seed twice."""
    differing = [name for name in ENVIRONMENT_FIELDS if any(_differ(runs[0], run, name) for run in runs)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run["recipe"]), [])
        for other in group:
            if other["seed"] == run["seed"]:
                raise UserError(f"{other['folder']} and {run['folder']} have the same recipe and seed: leave one out")
        group.append(run)
    return {
        "benchmark": "runs",
        "date": max(run["date"] for run in runs),
        "environment": {
            name: value
            for name in ENVIRONMENT_FIELDS
            if name not in differing and (value := runs[0]["environment"][name]) is not None
        },
        "differing": differing,
        "rows": [_row(group, differing) for group in groups.values()],
    }


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records of runs among the JSON files of ``folder``, by file name; each row as MEASURED, and its recipe.

    Raises UserError for a damaged file.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = record.read(path)
        if content.get("benchmark") != "runs":
            continue
        try:
            about = {name: content[name] for name in ("date", "environment", "differing")}
            found[path.name] = {**about, "rows": [_measured(row) for row in content["rows"]]}
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path.name} is not a record of runs ({error!r}): measure it again") from error
    return found


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: {"top5": None, **row}[name] for name in MEASURED}, "recipe": effective(row["recipe"])}


def _row(runs: list[dict[str, Any]], differing: list[str]) -> dict[str, Any]:
    runs = sorted(runs, key=lambda run: run["seed"])
    recipe = runs[0]["recipe"]
    accuracies, top5s = ([run[name] for run in runs] for name in ("accuracy", "top5"))
    return {
        **{name: recipe[name] for name in ("op", "lr_scheme", "eta")},
        "grad": gradients(recipe),
        "epochs": recipe["epochs"],
        "n": len(runs),
        "seeds": [run["seed"] for run in runs],
        "accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "top5": None if None in top5s else statistics.mean(top5s),
        "seconds_per_epoch": statistics.median(run["seconds_per_epoch"] for run in runs),
        "minutes": statistics.median(run["minutes"] for run in runs),
        "images_per_second": statistics.median(run["images_per_second"] for run in runs),
        "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
        "threads": sorted({count for run in runs for count in _values(run["environment"]["threads"])}),
        "recipe": recipe,
        "runs": [
            {
                **{name: value for name, value in run.items() if name not in ("recipe", "folder", "environment")},
                "environment": {name: run["environment"][name] for name in differing},
            }
            for run in runs
        ],
    }


def gradients(recipe: dict[str, Any]) -> str | None:
    """Return "full" or "sign", both rules by name if they are mixed, and None without adder layers."""
    if recipe["op"] != "adder":
        return None
    chosen = {name: recipe[name] for name in ("weight_grad", "input_grad")}
    mixed = f"weight {chosen['weight_grad']}, input {chosen['input_grad']}"
    return next((name for name, rules in GRADIENTS.items() if rules == chosen), mixed)


def _environment(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the ENVIRONMENT_FIELDS of a run; one that changed when the run was resumed is the list of its values."""
    stages = [environment, *environment.get("resumed", [])]
    stages = [{"processes": 1, **stage, "gpu": _gpu(stage)} for stage in stages]  # older versions had one process
    values = {name: list(dict.fromkeys(stage[name] for stage in stages)) for name in ENVIRONMENT_FIELDS}
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def _gpu(environment: dict[str, Any]) -> str | None:
    """Return the title of the GPU that a run was trained on."""
    about = environment.get("gpu")
    return title_of_gpu(about) if about else None


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _differ(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    value = other["environment"][name]
    return isinstance(value, list) or value != one["environment"][name]


def _date(path: Path) -> str:
    """Return the day in UTC on which the file was last written, which is that of the last epoch."""
    written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return written.strftime("%Y-%m-%d")

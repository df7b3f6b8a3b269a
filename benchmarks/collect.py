"""Collect finished training runs into one record of results/: python benchmarks/collect.py RUN... -o FILE."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchadder.bench import record
from torchadder.errors import UserError
from torchadder.train.recipe import GRADIENTS, Recipe
from torchadder.train.run import ENVIRONMENT, METRICS, RECIPE

# What must be equal before two runs are one measurement; where it is not, every run carries its own.
WHERE = ("processor", "platform", "torchadder", "torch", "numpy", "python", "threads", "kernels")
# The fields of a recipe without effect on an operator, or on a scheme.
UNUSED = {
    "products": ("lr_scheme", "eta", "ilr_factor", "weight_grad", "input_grad"),
    "alr": ("ilr_factor",),
    "ilr": ("eta",),
    "plain": ("eta", "ilr_factor"),
}


def read_run(folder: Path) -> dict[str, Any]:
    """One finished run: recipe, seed, final accuracy, cost, command and environment. Raises UserError for any other."""
    text = _text(folder / RECIPE)
    try:
        recipe = Recipe.from_json(text)
    except UserError as error:
        raise UserError(f"{folder / RECIPE}: {error}") from error
    epochs = _epochs(folder / METRICS)
    done = sum(epoch in epochs for epoch in range(1, recipe.epochs + 1))
    if done < recipe.epochs:
        raise UserError(f"{folder} is not finished ({done} of {recipe.epochs} epochs): continue it with --resume")
    fields = asdict(recipe)
    for name in UNUSED[recipe.lr_scheme if recipe.op == "adder" else "products"]:
        fields[name] = None
    try:
        rows = [epochs[epoch] for epoch in range(1, recipe.epochs + 1)]
        environment = json.loads(_text(folder / ENVIRONMENT))
        return {
            "seed": fields.pop("seed"),
            "accuracy": rows[-1]["test_accuracy"],
            "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
            "minutes": sum(row["seconds"] for row in rows) / 60,
            "images_per_second": statistics.median(row["images_per_second"] for row in rows),
            "peak_rss_mib": max(row["peak_rss_mib"] for row in rows),
            "command": record.portable_command(environment["command"]),
            "environment": _where(environment),
            "recipe": fields,
            "folder": folder,
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no run of this version of torchadder ({error!r})") from error


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """The record: a row for each recipe, seeds aside, in order of appearance. Raises UserError for a seed twice."""
    runs = [read_run(folder) for folder in folders]
    differing = [name for name in WHERE if any(_differ(runs[0], run, name) for run in runs)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run["recipe"]), [])
        for other in group:
            if other["seed"] == run["seed"]:
                raise UserError(f"{other['folder']} and {run['folder']} are one recipe and one seed: leave one out")
        group.append(run)
    return {
        "benchmark": "runs",
        "date": record.today(),
        "environment": {name: runs[0]["environment"][name] for name in WHERE if name not in differing},
        "differing": differing,
        "rows": [_row(group, differing) for group in groups.values()],
    }


def _row(runs: list[dict[str, Any]], differing: list[str]) -> dict[str, Any]:
    runs = sorted(runs, key=lambda run: run["seed"])
    recipe = runs[0]["recipe"]
    accuracies = [run["accuracy"] for run in runs]
    return {
        **{name: recipe[name] for name in ("op", "lr_scheme", "eta")},
        "grad": _gradients(recipe),
        "epochs": recipe["epochs"],
        "n": len(runs),
        "seeds": [run["seed"] for run in runs],
        "accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
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


def _gradients(recipe: dict[str, Any]) -> str | None:
    """ "full" or "sign", as --grad takes them; both rules by name where they are mixed; None without adder layers."""
    if recipe["op"] != "adder":
        return None
    chosen = {name: recipe[name] for name in ("weight_grad", "input_grad")}
    mixed = f"weight {chosen['weight_grad']}, input {chosen['input_grad']}"
    return next((name for name, rules in GRADIENTS.items() if rules == chosen), mixed)


def _where(environment: dict[str, Any]) -> dict[str, Any]:
    """The run's environment; a field that changed when the run was resumed becomes the list of its values."""
    stages = [environment, *environment.get("resumed", [])]
    values = {name: list(dict.fromkeys(stage[name] for stage in stages)) for name in WHERE}
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _differ(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    value = other["environment"][name]
    return isinstance(value, list) or value != one["environment"][name]


def _epochs(path: Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by epoch; of an epoch that was run again, the last."""
    rows: dict[int, dict[str, Any]] = {}
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
            rows[row["epoch"]] = row
        except (ValueError, KeyError, TypeError):  # torn by a kill
            continue
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise UserError(f"{path.parent} is no run of torchadder train: cannot read {path.name} ({reason})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect finished runs of `torchadder train` into one record.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="e.g. results/mnist-lenet5bn.json")
    options = parser.parse_args(arguments)
    try:
        result = collect(options.runs)
        record.write(options.output, result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result["differing"]:
        print(f"note: the runs differ in {', '.join(result['differing'])}: listed run by run", file=sys.stderr)
    for row in result["rows"]:
        scheme = [str(row[name]) for name in ("op", "lr_scheme", "eta", "grad") if row[name] is not None]
        seeds = f"{row['n']} seed{'s' if row['n'] > 1 else ''}"
        print(f"{' '.join(scheme)}, {row['epochs']} epochs: {row['mean']:.2f}% over {seeds}")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

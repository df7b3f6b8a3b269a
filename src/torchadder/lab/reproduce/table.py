"""Fill the tables of an experiment from the records of runs, and print them beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchadder.environment import title_of_gpu
from torchadder.lab.record import Record
from torchadder.lab.reproduce.experiments import EXPERIMENTS, Experiment, Row
from torchadder.lab.reproduce.runs import MEASURED, effective
from torchadder.train.recipe import RECIPES

ACCURACY = ("network", "accuracy, %", "paper, %", "gap", "seeds", "epochs")
TOP5 = ("network", "top-5, %", "paper, %")
COST = ("network", "minutes", "s an epoch", "images/s", "peak MiB", "threads")
NOTHING, NOT_RUN = "–", "not run here"


@dataclass(frozen=True)
class Line:
    """Hold a row and its measurement, which is a row of the record in ``file``; both None without a measurement."""

    row: Row
    measured: Mapping[str, Any] | None
    file: str | None

    @property
    def gap(self) -> float | None:
        """Return our accuracy minus the paper's; None if one of them is missing."""
        return None if self.measured is None else self.row.gap(self.measured["mean"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"label": self.row.label, "recipe": self.row.recipe, "changes": dict(self.row.changes)}
        numbers = {name: (self.measured or {}).get(name) for name in MEASURED}
        return {**about, "paper": self.row.paper, "paper_top5": self.row.paper_top5, "gap": self.gap, **numbers}


def fill(experiment: Experiment, records: Mapping[str, Record], epochs: int | None = None) -> list[Line]:
    """Return the rows of ``experiment``, each with the measurement of exactly its recipe, shortened to ``epochs``.

    If several of the ``records`` (by file name) have the recipe, the one with the most seeds counts, then the latest;
    runs of different files are never mixed.
    """
    lines = []
    for row in experiment.rows:
        wanted = effective(asdict(row.recipe_for(epochs=epochs)))
        found = [
            (measured["n"], record["date"], file, measured)
            for file, record in records.items()
            for measured in record["rows"]
            if measured["recipe"] == wanted
        ]
        *_, file, measured = max(found, key=lambda entry: entry[:3], default=(None, None))
        lines.append(Line(row, measured, file))
    return lines


def shortened(experiment: Experiment, records: Mapping[str, Record]) -> list[int]:
    """Return the numbers of epochs below the recipe's that rows of ``experiment`` were measured with, largest first."""
    measured = (row["recipe"] for record in records.values() for row in record["rows"])
    found = {recipe["epochs"] for recipe in measured if row_of(recipe, experiment)}
    return sorted(found - {experiment.epochs}, reverse=True)


def row_of(recipe: Mapping[str, Any], experiment: Experiment) -> Row | None:
    """Return the row with this recipe (as ``effective`` returns it), in full or shortened; None if there is none."""
    for row in experiment.rows:
        full = effective(asdict(row.recipe_for()))
        if recipe == {**full, "epochs": recipe["epochs"]} and recipe["epochs"] <= full["epochs"]:
            return row
    return None


Cells = list[list[str]]  # the header of a table, then its lines


def accuracies(experiment: Experiment, lines: Sequence[Line]) -> Cells:
    """Return every row with its gap to the paper."""
    return [list(ACCURACY), *(_accuracies(line, experiment.epochs) for line in lines)]


def _accuracies(line: Line, full: int) -> list[str]:
    paper = _percent(line.row.paper)
    measured = line.measured
    if measured is None:
        return [line.row.label, NOT_RUN, paper, *[NOTHING] * 3]
    gap = NOTHING if line.gap is None else f"{line.gap:+.2f}"
    epochs = str(measured["epochs"]) + (f" of {full}" if full != measured["epochs"] else "")
    return [line.row.label, _accuracy(measured), paper, gap, str(measured["n"]), epochs]


def top5s(lines: Sequence[Line]) -> Cells:
    """Return the rows for which the paper has a top-5 accuracy."""
    known = [line for line in lines if line.row.paper_top5 is not None]
    measured = (_percent(line.measured["top5"]) if line.measured else NOT_RUN for line in known)
    return [
        list(TOP5),
        *([line.row.label, ours, _percent(line.row.paper_top5)] for line, ours in zip(known, measured, strict=True)),
    ]


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def costs(lines: Sequence[Line]) -> Cells:
    """Return the measured rows with the cost of one run."""
    return [list(COST), *([line.row.label, *_cost(line.measured)] for line in lines if line.measured)]


def tables(experiment: Experiment, lines: Sequence[Line]) -> list[Cells]:
    """Return accuracies, top-5 accuracies and costs, without tables that have no rows."""
    return [cells for cells in (accuracies(experiment, lines), top5s(lines), costs(lines)) if len(cells) > 1]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Format a table in Markdown; the first ``left`` columns are text, the others are numbers."""
    rule = [":--" if column < left else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def document(experiment: Experiment, records: Mapping[str, Record]) -> str:
    """Return the full table with source and note, then one table for each number of epochs it was shortened to."""
    paper = f" Paper: {experiment.source}." if experiment.source else ""
    parts = [f"`torchadder reproduce {experiment.name}`.{paper} {experiment.note}".rstrip()]
    parts += _section(experiment, records, None)
    for epochs in shortened(experiment, records):
        command = f"`torchadder reproduce {experiment.name} --epochs {epochs}`"
        parts.append(f"{command}. **Shortened to {epochs} of {experiment.epochs} epochs, no reproduction.**")
        parts += _section(experiment, records, epochs)
    return "\n\n".join(parts)


def _section(experiment: Experiment, records: Mapping[str, Record], epochs: int | None) -> list[str]:
    """Return the tables that have rows, and the machines that measured them."""
    lines = fill(experiment, records, epochs)
    files = dict.fromkeys(line.file for line in lines if line.file)
    parts = [markdown(header, rows) for header, *rows in tables(experiment, lines)]
    return [*parts, "\n".join(f"- `{file}`: {_where(records[file])}" for file in files)] if files else parts


def others(records: Mapping[str, Record]) -> str:
    """Return a table of all measured rows that belong to no experiment, or "" if there is none."""
    lines = []
    for file, record in records.items():
        for row in record["rows"]:
            recipe = row["recipe"]
            if any(row_of(recipe, experiment) for experiment in EXPERIMENTS.values()):
                continue
            counts = [str(row["n"]), str(row["epochs"])]
            lines.append([_described(recipe), f"`{file}`", _accuracy(row), *counts, *_cost(row)])
    header = ["recipe", "file", "accuracy, %", "seeds", "epochs", *COST[1:]]
    return markdown(header, lines, left=2) if lines else ""


def _described(recipe: Mapping[str, Any]) -> str:
    """Return ``lenet5bn-mnist, adder, recenter True``: name, operator, and fields that differ from the recipe."""
    if recipe["name"] not in RECIPES:
        return f"{recipe['name']}, {recipe['op']}"
    ours = effective({**asdict(RECIPES[recipe["name"]]), "op": recipe["op"]})
    changed = [f"{k} {v}" for k, v in recipe.items() if k != "epochs" and v is not None and v != ours.get(k)]
    return ", ".join([recipe["name"], recipe["op"], *changed])


def machine(environment: Mapping[str, Any]) -> list[str]:
    """Return processor, GPU and versions as up to three texts, as far as the whole record shares them."""
    processor = [environment["processor"]] if "processor" in environment else []
    processor += [f"{environment['cores']} cores"] if "cores" in environment else []
    versions = [f"torch {environment['torch']}"] if "torch" in environment else []
    versions += [f"{environment['kernels']} kernels"] if environment.get("kernels") else []
    about = environment.get("gpu")  # a description in a benchmark, a title in a record of runs
    gpu = [about if isinstance(about, str) else title_of_gpu(about)] if about else []
    return [", ".join(part) for part in (processor, gpu, versions) if part]


def _where(record: Record) -> str:
    differing = [f"its runs differ in {', '.join(record['differing'])}, listed run by run"]
    return "; ".join([*machine(record["environment"]), *(differing if record["differing"] else []), record["date"]])


def _accuracy(measured: Mapping[str, Any]) -> str:
    spread = "" if measured["std"] is None else f" ± {measured['std']:.2f}"
    return f"{measured['mean']:.2f}{spread}"


def _cost(measured: Mapping[str, Any]) -> list[str]:
    """Return the cells below COST, without the first."""
    return [
        f"{measured['minutes']:.1f}",
        f"{measured['seconds_per_epoch']:.1f}",
        f"{measured['images_per_second']:,.0f}",
        f"{measured['peak_rss_mib']:,.0f}",
        ", ".join(map(str, measured["threads"])),
    ]

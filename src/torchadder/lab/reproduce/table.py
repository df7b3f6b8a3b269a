"""Tables of text: the rows of an experiment, filled from the records of runs, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchadder.environment import title_of_gpu
from torchadder.lab.reproduce.experiments import EXPERIMENTS, Experiment, Row
from torchadder.lab.reproduce.record import MEASURED, Record, effective
from torchadder.train.recipe import RECIPES

ACCURACY = ("network", "accuracy, %", "paper, %", "gap", "seeds", "epochs")
TOP5 = ("network", "top-5, %", "paper, %")
COST = ("network", "minutes", "s an epoch", "images/s", "peak MiB", "threads")
NOTHING, NOT_RUN = "–", "not run here"


@dataclass(frozen=True)
class Line:
    """A row and what was measured for it: a row of the record in ``file``; both None where nothing was."""

    row: Row
    measured: Mapping[str, Any] | None
    file: str | None

    @property
    def gap(self) -> float | None:
        """Ours minus the paper's in percent points, of the two numbers as they are printed."""
        if self.measured is None or self.row.paper is None:
            return None
        return round(round(self.measured["mean"], 2) - self.row.paper, 2) + 0.0  # no -0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        about = {"label": self.row.label, "recipe": self.row.recipe, "changes": dict(self.row.changes)}
        numbers = {name: (self.measured or {}).get(name) for name in MEASURED}
        return {**about, "paper": self.row.paper, "paper_top5": self.row.paper_top5, "gap": self.gap, **numbers}


def fill(experiment: Experiment, records: Mapping[str, Record], epochs: int | None = None) -> list[Line]:
    """The rows of ``experiment``, each with what was measured by exactly its recipe, shortened to ``epochs`` if given.

    ``records``: file name -> record of runs. Where several have the recipe, the one with the most seeds counts, of
    these the latest; runs of different files are never mixed.
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
    """The numbers of epochs below the recipe's with which rows of ``experiment`` were measured, most first."""
    measured = (row["recipe"] for record in records.values() for row in record["rows"])
    found = {recipe["epochs"] for recipe in measured if _belongs(recipe, experiment)}
    return sorted(found - {experiment.epochs}, reverse=True)


def _belongs(recipe: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the table has a row of this recipe, in full or shortened."""
    rows = (effective(asdict(row.recipe_for())) for row in experiment.rows)
    return any(recipe == {**full, "epochs": recipe["epochs"]} and recipe["epochs"] <= full["epochs"] for full in rows)


Cells = list[list[str]]  # a table: its header, then its lines


def accuracies(experiment: Experiment, lines: Sequence[Line]) -> Cells:
    """Every row, with its gap to the paper."""
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
    """The rows for which the paper has a top-5 accuracy."""
    known = [line for line in lines if line.row.paper_top5 is not None]
    measured = (_percent(line.measured["top5"]) if line.measured else NOT_RUN for line in known)
    return [
        list(TOP5),
        *([line.row.label, ours, _percent(line.row.paper_top5)] for line, ours in zip(known, measured, strict=True)),
    ]


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def costs(lines: Sequence[Line]) -> Cells:
    """The rows that were measured, and what one of their runs took."""
    return [list(COST), *([line.row.label, *_cost(line.measured)] for line in lines if line.measured)]


def tables(experiment: Experiment, lines: Sequence[Line]) -> list[Cells]:
    """All of these that have a row."""
    return [cells for cells in (accuracies(experiment, lines), top5s(lines), costs(lines)) if len(cells) > 1]


def plain(cells: Cells) -> str:
    """The table for a terminal; the first column is text, the others numbers."""
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in cells)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """The table for a document; the first `left` columns are text, the others numbers."""
    rule = [":--" if column < left else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def document(experiment: Experiment, records: Mapping[str, Record]) -> str:
    """The full table with its sources and its note, then one for each number of epochs that it was shortened to."""
    paper = f" Paper: {experiment.source}." if experiment.source else ""
    parts = [f"`torchadder reproduce {experiment.name}`.{paper} {experiment.note}".rstrip()]
    parts += _section(experiment, records, None)
    for epochs in shortened(experiment, records):
        command = f"`torchadder reproduce {experiment.name} --epochs {epochs}`"
        parts.append(f"{command}. **Shortened to {epochs} of {experiment.epochs} epochs, no reproduction.**")
        parts += _section(experiment, records, epochs)
    return "\n\n".join(parts)


def _section(experiment: Experiment, records: Mapping[str, Record], epochs: int | None) -> list[str]:
    """The tables, those that would be empty left out, and where it was measured."""
    lines = fill(experiment, records, epochs)
    files = dict.fromkeys(line.file for line in lines if line.file)
    parts = [markdown(header, rows) for header, *rows in tables(experiment, lines)]
    return [*parts, "\n".join(f"- `{file}`: {_where(records[file])}" for file in files)] if files else parts


def others(records: Mapping[str, Record]) -> str:
    """Every measured row that is in none of the tables: another data set, precision or rate; "" where there is none."""
    lines = []
    for file, record in records.items():
        for row in record["rows"]:
            recipe = row["recipe"]
            if any(_belongs(recipe, experiment) for experiment in EXPERIMENTS.values()):
                continue
            counts = [str(row["n"]), str(row["epochs"])]
            lines.append([_described(recipe), f"`{file}`", _accuracy(row), *counts, *_cost(row)])
    header = ["recipe", "file", "accuracy, %", "seeds", "epochs", *COST[1:]]
    return markdown(header, lines, left=2) if lines else ""


def _described(recipe: Mapping[str, Any]) -> str:
    """``lenet5bn-mnist, adder, recenter True, precision bf16``: name, operator, and what is not the recipe's."""
    if recipe["name"] not in RECIPES:
        return f"{recipe['name']}, {recipe['op']}"
    ours = effective({**asdict(RECIPES[recipe["name"]]), "op": recipe["op"]})
    changed = [f"{k} {v}" for k, v in recipe.items() if k != "epochs" and v is not None and v != ours.get(k)]
    return ", ".join([recipe["name"], recipe["op"], *changed])


def machine(environment: Mapping[str, Any]) -> list[str]:
    """Processor, cores, GPU, torch and kernels, as far as they are one for the whole record."""
    processor = [environment["processor"]] if "processor" in environment else []
    processor += [f"{environment['cores']} cores"] if "cores" in environment else []
    versions = [f"torch {environment['torch']}"] if "torch" in environment else []
    versions += [f"{environment['kernels']} kernels"] if environment.get("kernels") else []
    about = environment.get("gpu")  # described, of a benchmark; named, of runs
    gpu = [about if isinstance(about, str) else title_of_gpu(about)] if about else []
    return [", ".join(part) for part in (processor, gpu, versions) if part]


def _where(record: Record) -> str:
    differing = [f"its runs differ in {', '.join(record['differing'])}, listed run by run"]
    return "; ".join([*machine(record["environment"]), *(differing if record["differing"] else []), record["date"]])


def _accuracy(measured: Mapping[str, Any]) -> str:
    spread = "" if measured["std"] is None else f" ± {measured['std']:.2f}"
    return f"{measured['mean']:.2f}{spread}"


def _cost(measured: Mapping[str, Any]) -> list[str]:
    """As COST says."""
    return [
        f"{measured['minutes']:.1f}",
        f"{measured['seconds_per_epoch']:.1f}",
        f"{measured['images_per_second']:,.0f}",
        f"{measured['peak_rss_mib']:,.0f}",
        ", ".join(map(str, measured["threads"])),
    ]

"""The page itself: what is said of the runs put into the template, with style, script and charts inside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torchadder import files
from torchadder.data import Dataset, Split
from torchadder.errors import UserError
from torchadder.lab.report import charts, cost
from torchadder.lab.report.content import REPETITIONS, Content, Missing, collect
from torchadder.lab.reproduce.record import effective
from torchadder.lab.runs import TrainedRun, titles
from torchadder.train.recipe import Recipe
from torchadder.version import __version__

SUFFIX = ".html"
FOLDER = Path(__file__).parent
PACKAGES = ("jinja2", "altair", "vl_convert")
MATRIX = 25  # classes up to which the confusion matrix is shown whole
UNTESTED = "no confusion matrix, no accuracy by class and no mistakes"
LISTED = 20  # otherwise so many of the most frequent confusions, and of the classes with the lowest accuracy


def is_installed() -> bool:
    """Whether the packages of the extra [report] are at hand."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def write(
    runs: Sequence[TrainedRun],
    path: Path,
    *,
    data_dir: Path | None = None,
    test: bool | None = True,
    program: Path | None = None,
    workers: int | None = None,
) -> list[str]:
    """Write the page about ``runs`` to ``path``, whole or not at all; several are compared.

    Args:
        path: a file FILE.html, which is replaced.
        data_dir: folder with the data files, as --data. Where it is None and the data cannot be had, the page
            says so and does without.
        test: False leaves out what needs the test images; None does where these stream, which may take hours.
        program: a .tadder file of the run, which is then the only one; those in run directories are found.
        workers: processes that decode images which stream.

    Returns what the page lacks and why, a line each.

    Raises UserError for missing packages, a path that cannot be written, runs that cannot be on one page or are
    damaged, and data in ``data_dir`` or a program that are not for them.
    """
    files.check_writable(path, SUFFIX)
    _check(runs, program)
    contents = _collect(runs, data_dir, test, program, workers)
    try:
        files.write_bytes(path, render(contents).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    several = len(contents) > 1
    return [f"{content.title}: {part}" if several else str(part) for content in contents for part in content.missing]


def _check(runs: Sequence[TrainedRun], program: Path | None) -> None:
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f'the report needs {name}, which is not installed: pip install "torchadder[report]"'
            ) from error
    if not 1 <= len(runs) <= charts.SERIES:
        raise UserError(f"a page compares 1 to {charts.SERIES} runs, got {len(runs)}: make several pages")
    seen: set[Path] = set()
    for run in runs:
        if run.folder.resolve() in seen:
            raise UserError(f"{run.folder} is named twice: a run is not compared with itself")
        seen.add(run.folder.resolve())
        first = runs[0]
        if run.recipe.dataset != first.recipe.dataset:
            raise UserError(
                f"{first.folder} was tested on {first.recipe.dataset} and {run.folder} on {run.recipe.dataset}: "
                "their accuracies do not compare, make a page of each"
            )
    if program is not None and len(runs) > 1:
        raise UserError(f"--program {program} belongs to one run, got {len(runs)}: move it into its run directory")


def _collect(
    runs: Sequence[TrainedRun], data_dir: Path | None, test: bool | None, program: Path | None, workers: int | None
) -> list[Content]:
    opened: dict[tuple[bool, str], Dataset | Missing] = {}

    def dataset_of(run: TrainedRun) -> Dataset | Missing:
        if test is False:
            return Missing(f"{UNTESTED}: the test images were left out")
        wanted = (run.recipe.partial, run.recipe.on_error)
        if wanted not in opened:
            try:
                dataset = run.dataset(data_dir)
                streams = test is None and not isinstance(dataset.test, Split)
                opened[wanted] = Missing(f"{UNTESTED}: the test images stream") if streams else dataset
            except UserError as error:
                if data_dir is not None:
                    raise
                opened[wanted] = Missing(f"{UNTESTED}: the test images are not at hand", str(error))
        return opened[wanted]

    named = zip(runs, titles([*runs]), strict=True)
    return [collect(run, title, dataset_of(run), program, workers) for run, title in named]


def render(contents: Sequence[Content]) -> str:
    """The page about what was collected of one or more runs, as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": _clock, "plain": _plain, "shade": _shade, "significant": "{:.4g}".format}
    scripts = [_bundle(), (FOLDER / "page.js").read_text()]
    page = environment.get_template("page.html.j2").render(
        contents=contents,
        heading=contents[0].run.recipe.name if len(contents) == 1 else f"{len(contents)} runs compared",
        differences=_differences([content.run.recipe for content in contents]),
        charts=_charts(contents),
        matrix=MATRIX,
        listed=LISTED,
        repetitions=REPETITIONS,
        cost_cells=cost.cells,
        cost_notes=cost.notes,
        version=__version__,
        policy=_policy(scripts),
        style=(FOLDER / "page.css").read_text(),
        scripts=scripts,
    )
    return page.lstrip()  # of the lines that macros leave


def _charts(contents: Sequence[Content]) -> dict[str, Any]:
    """Specifications by name, and the figures: the name of a specification with the numbers that it draws."""
    names = [content.title for content in contents]
    rows = charts.metrics(contents)
    figures: dict[str, Any] = {name: {"spec": name, "shared": True} for name in ("accuracy", "loss")}
    for number, content in enumerate(contents, start=1):
        for place, layer in enumerate(content.weights):
            figures[f"weights-{number}-{place}"] = {"spec": "weights", "datasets": charts.weight_rows(layer)}
    specs = {name: charts.curves(name, names, rows) for name in ("accuracy", "loss")}
    return {"specs": {**specs, "weights": charts.weight_histogram()}, "shared": {"metrics": rows}, "figures": figures}


def _differences(recipes: Sequence[Recipe]) -> list[tuple[str, list[Any]]]:
    """The fields in which the recipes differ, the seed too, with the value of each; None where it has no effect."""
    heeded = [{**effective(vars(recipe)), "seed": recipe.seed} for recipe in recipes]
    columns = [(f.name, [values[f.name] for values in heeded]) for f in fields(Recipe)]
    return [(name, values) for name, values in columns if any(value != values[0] for value in values)]


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, from the package that brings them along."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(snippet=None)  # type: ignore[arg-type]  # its default
    return bundle.replace("\r\n", "\n").replace("</script", r"<\/script")


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: these scripts and no others run, nothing is loaded from anywhere."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _clock(seconds: float) -> str:
    """``45 s``, ``8 min 29 s``, ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    """The value of a field as a word: booleans are on or off, nothing is a dash."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else "none" if value == "" else str(value)


def _shade(number: int, largest: int) -> int:
    """0 for nothing, else 1 to 5: how dark a cell of the matrix is, by the square root of its share."""
    return 0 if not number else max(1, round(5 * (number / largest) ** 0.5))

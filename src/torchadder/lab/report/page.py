"""Write the page: fill the template with the content of the runs, and embed style, scripts and charts."""

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
from torchadder.export.page import TEMPLATE as BASE
from torchadder.lab.report import charts, cost
from torchadder.lab.report.content import REPETITIONS, Content, Missing, collect
from torchadder.lab.report.verdict import verdict
from torchadder.lab.reproduce.runs import effective
from torchadder.lab.runs import TrainedRun, titles
from torchadder.train.recipe import Recipe
from torchadder.version import __version__

SUFFIX = ".html"
FOLDER = Path(__file__).parent
PACKAGES = ("jinja2", "altair", "vl_convert")
SCHEMES = {
    "alr": "ALR is the adaptive learning rate of the AdderNet paper: the gradient of each adder layer of k weights is "
    "rescaled to the norm eta √k.",
    "ilr": "ILR is an increased learning rate: the gradient of each adder layer is multiplied by ilr_factor.",
}
MATRIX = 25  # largest number of classes with a full confusion matrix
LISTED = 20  # length of the two lists that replace a larger matrix
HISTOGRAMS = 8  # layers whose weights are shown at once, the others are folded
UNTESTED = "no confusion matrix, no accuracy by class and no mistakes"


def is_installed() -> bool:
    """Return True if the packages of the extra [report] are installed."""
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
    """Write the page about ``runs`` to ``path``; several runs are compared.

    Args:
        path: a file named *.html; an existing one is replaced.
        data_dir: folder with the data files; None for the default places. If it is None and the data set cannot be
            loaded, the page says so and leaves out what needs it.
        test: False leaves out everything that needs the test images; None does so only for images that stream from
            disk, whose test may take hours.
        program: a .tadder file of the single run, beside those in the run directory.
        workers: processes that decode images that stream from disk.

    Returns a line for each part that the page lacks, with the reason.

    Raises UserError for missing packages, a path that cannot be written, runs that are damaged or cannot be compared,
    and a data set or a program that does not fit the runs.
    """
    files.check_writable(path, SUFFIX)
    _check(runs, program)
    contents = _collect(runs, data_dir, test, program, workers)
    try:
        files.write_bytes(path, render(contents).encode(errors="replace"))  # a path may be no UTF-8
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
            raise UserError(f"{run.folder} is named twice: name each run once")
        seen.add(run.folder.resolve())
        first = runs[0]
        if run.recipe.dataset != first.recipe.dataset:
            raise UserError(
                f"{first.folder} was tested on {first.recipe.dataset} and {run.folder} on {run.recipe.dataset}: "
                "accuracies on different data sets do not compare, make a page of each"
            )
    if program is not None and len(runs) > 1:
        raise UserError(f"program={program} belongs to one run, got {len(runs)} runs: move it into its run directory")


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
                opened[wanted] = Missing(f"{UNTESTED}: the test images stream from disk") if streams else dataset
            except UserError as error:
                if data_dir is not None:
                    raise
                opened[wanted] = Missing(f"{UNTESTED}: the test images are not available", str(error))
        return opened[wanted]

    networks = [run.network for run in runs]
    names = networks if 1 < len(runs) == len(set(networks)) else titles([*runs])
    return [collect(run, name, dataset_of(run), program, workers) for run, name in zip(runs, names, strict=True)]


def render(contents: Sequence[Content]) -> str:
    """Return the page as HTML."""
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
        verdict=verdict(contents),
        heading=contents[0].run.recipe.name if len(contents) == 1 else f"{len(contents)} runs compared",
        schemes=_schemes([content.run.recipe for content in contents]),
        differences=_differences([content.run.recipe for content in contents]),
        charts=_charts(contents),
        matrix=MATRIX,
        listed=LISTED,
        histograms=HISTOGRAMS,
        repetitions=REPETITIONS,
        cost_cells=cost.cells,
        cost_notes=cost.notes,
        version=__version__,
        policy=_policy(scripts),
        style=(BASE / "base.css").read_text() + (FOLDER / "page.css").read_text(),
        scripts=scripts,
    )
    return page.lstrip()  # Macros leave empty lines before the doctype.


def _charts(contents: Sequence[Content]) -> dict[str, Any]:
    """Return chart specifications by name, and for each chart of the page its specification and rows."""
    names = [content.title for content in contents]
    rows = charts.metrics(contents)
    figures: dict[str, Any] = {name: {"spec": name, "shared": True} for name in ("accuracy", "loss")}
    for number, content in enumerate(contents, start=1):
        for place, layer in enumerate(content.weights):
            figures[f"weights-{number}-{place}"] = {"spec": "weights", "datasets": charts.weight_rows(layer)}
    specs = {name: charts.curves(name, names, rows) for name in ("accuracy", "loss")}
    return {"specs": {**specs, "weights": charts.weight_histogram()}, "shared": {"metrics": rows}, "figures": figures}


def _schemes(recipes: Sequence[Recipe]) -> str:
    """Return an explanation of the learning-rate schemes of the AdderNets among the runs."""
    used = {recipe.lr_scheme for recipe in recipes if recipe.op == "adder"}
    return " ".join(text for scheme, text in SCHEMES.items() if scheme in used)


def _differences(recipes: Sequence[Recipe]) -> list[tuple[str, list[Any]]]:
    """Return the fields in which the recipes differ with the value of each; None where a field has no effect."""
    in_effect = [{**effective(vars(recipe)), "seed": recipe.seed} for recipe in recipes]
    columns = [(f.name, [values[f.name] for values in in_effect]) for f in fields(Recipe)]
    return [(name, values) for name, values in columns if any(value != values[0] for value in values)]


@functools.cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which vl-convert contains."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(snippet=None)  # type: ignore[arg-type]  # None is its default.
    return bundle.replace("\r\n", "\n").replace("</script", r"<\/script")


def _policy(scripts: Sequence[str]) -> str:
    """Return a content security policy that runs only ``scripts`` and loads nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _clock(seconds: float) -> str:
    """Return a duration such as "45 s", "8 min 29 s" or "1 h 2 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    """Return the value of a field as text: on or off for a boolean, a dash for None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else "none" if value == "" else str(value)


def _shade(number: int, largest: int) -> int:
    """Return the darkness of a matrix cell: 0 for no image, else 1 to 5 by the square root of number / largest."""
    return 0 if not number else max(1, round(5 * (number / largest) ** 0.5))

"""Collect the numbers and texts that the page shows of a run, from its directory, its model and the test images."""

from __future__ import annotations

import base64
import io
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.counts import Summary, summary
from torchadder.data import Dataset, Split, open_batches
from torchadder.data.images import load_pillow
from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.lab.predictions import Predictions, predict
from torchadder.lab.record import portable_command
from torchadder.lab.reproduce import EXPERIMENTS
from torchadder.lab.reproduce.runs import effective
from torchadder.lab.reproduce.table import row_of
from torchadder.lab.runs import TrainedRun
from torchadder.lab.weights import LayerWeights, fits
from torchadder.models import Model
from torchadder.quant.file import SUFFIX
from torchadder.train.recipe import RECIPES, Recipe

BATCH = 256
MISTAKES = 24
LARGEST_SIDE = 64  # pixels of an image on the page
REPETITIONS = 51  # calls of the engine, whose median time is the latency
NEEDED = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second")


@dataclass(frozen=True)
class Setting:
    """Hold a field of a recipe, its default in the recipe of that name, and if it has an effect on this run."""

    name: str
    value: Any
    default: Any
    used: bool

    @property
    def changed(self) -> bool:
        return bool(self.value != self.default)


@dataclass(frozen=True)
class Headline:
    """Hold the result of a run and its effort. ``best_epoch`` was chosen on the test images. Accuracies in percent."""

    accuracy: float
    best_accuracy: float
    best_epoch: int
    epochs: int
    planned: int
    seconds: float
    images_per_second: float
    peak_mib: float | None


@dataclass(frozen=True)
class Paper:
    """Hold the published accuracy of a recipe, in percent, and the ``epochs`` of the full recipe.

    ``gap``: accuracy of the run minus the published one, in points; None if the run is shorter or not finished.
    """

    accuracy: float
    source: str
    epochs: int
    gap: float | None


@dataclass(frozen=True)
class Picture:
    """Show a mistake: a PNG as a data URI, the names of both classes, and the probability of the predicted one."""

    uri: str
    index: int
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class IntegerProgram:
    """Hold what is known of a .tadder file.

    ``accuracy``: over the test images, in percent; None without test images. ``seconds``: latency, the median of
    ``Engine.benchmark`` for one image on one thread. ``about``: the metadata of the file.
    """

    file: str
    accuracy: float | None
    seconds: float
    file_bytes: int
    arena_bytes: int
    about: Mapping[str, Any]

    @property
    def bits(self) -> str:
        """Return the bits that the file states, in a few characters; empty where it states none."""
        return str(self.about.get("bits", ""))[:8]

    @property
    def milliseconds(self) -> str:
        """Return the latency in milliseconds, with three digits."""
        milliseconds = 1000 * self.seconds
        return f"{milliseconds:#.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


class Missing(NamedTuple):
    """Name a part that the page lacks and the reason. ``details`` may name folders and are not on the page."""

    text: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.details})" if self.details else self.text


@dataclass
class Content:
    """Hold everything that the page shows of one run."""

    title: str
    run: TrainedRun
    settings: dict[str, list[Setting]]  # by group of the recipe
    environment: dict[str, str]
    headline: Headline
    paper: Paper | None
    layers: Summary
    weights: list[LayerWeights]
    classes: list[str]
    predictions: Predictions | None = None
    pictures: list[Picture] = field(default_factory=list)
    stretched: bool = False
    programs: list[IntegerProgram] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def collect(
    run: TrainedRun, title: str, dataset: Dataset | Missing, program: Path | None = None, workers: int | None = None
) -> Content:
    """Collect the content of ``run``.

    Args:
        dataset: the data set of the run, or the reason why its test images are not used.
        program: a .tadder file to describe beside those in the run directory.
        workers: processes that decode images.

    Raises UserError if the run is damaged, or if the data set or ``program`` does not fit its model.
    """
    check_metrics(run)
    model = run.model()
    layers = summary(model, model.input_size)
    missing: list[Missing] = []
    content = Content(
        title,
        run,
        settings_of(run.recipe),
        environment_of(run.environment),
        headline_of(run),
        paper_of(run),
        layers,
        _weights(model, missing),
        [str(label) for label in range(model.config["num_classes"])],
        missing=missing,
    )
    if isinstance(dataset, Missing):
        missing.append(dataset)
    else:
        _check_fits(run, model, dataset)
        if dataset.classes:
            content.classes = [*dataset.classes]
        batches = open_batches(dataset.test, BATCH, workers=workers)
        content.predictions = predict(model, batches, model.config["num_classes"], MISTAKES)
        _add_pictures(content, dataset)
    images = None if isinstance(dataset, Missing) else dataset
    if program is not None:
        content.programs.append(_program(program, model, images, workers))
    for path in sorted(run.folder.glob(f"*{SUFFIX}")):
        if program is None or path.resolve() != program.resolve():
            try:
                content.programs.append(_program(path, model, images, workers))
            except UserError as error:
                missing.append(
                    Missing(f"no integer program {path.name}: it is damaged, or was not made from this run", str(error))
                )
    if not content.programs:
        text = f"no 8-bit accuracy and latency: the run directory holds no {SUFFIX} file"
        command = f"torchadder quantize {run.folder} -o {run.folder}/int8{SUFFIX}"
        missing.append(Missing(text, f"{command} makes one"))
    return content


def check_metrics(run: TrainedRun) -> None:
    """Raise UserError if a line of the metrics lacks a number that the page needs."""
    for row in run.metrics:
        for name in NEEDED:
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(
                    f"{run.folder} is damaged: epoch {row.get('epoch')} of metrics.jsonl has {name} = {value!r}, "
                    "expected a number"
                )


def settings_of(recipe: Recipe) -> dict[str, list[Setting]]:
    """Return all fields by group, in recipe order; an unknown recipe is compared with the defaults of the fields."""
    known = RECIPES.get(recipe.name)
    in_effect = effective(asdict(recipe))
    found: dict[str, list[Setting]] = {}
    for option in fields(Recipe):
        value = getattr(recipe, option.name)
        default = option.default if option.metadata else value
        if known is not None:
            default = getattr(known, option.name)
        group = option.metadata["group"] if option.metadata else "Recipe"
        used = option.name == "seed" or in_effect[option.name] is not None
        found.setdefault(group, []).append(Setting(option.name, value, default, used))
    return found


def environment_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries as text. Paths are removed from the command, because a page is shared with others."""
    found = {}
    for name, value in environment.items():
        if name == "resumed":
            if isinstance(value, list) and value:
                after = (str(entry.get("after_epoch", "?")) for entry in value if isinstance(entry, dict))
                found["resumed after epoch"] = ", ".join(after)
        elif name == "command":
            try:
                found[name] = portable_command(str(value))
            except ValueError:  # It is not a valid command line.
                continue
        elif value is not None:
            found[name] = str(value)
    return found


def headline_of(run: TrainedRun) -> Headline:
    """Return result and effort of ``run``. The best epoch is the first with the highest test accuracy."""
    rows = run.metrics
    best = max(rows, key=lambda row: row["test_accuracy"])
    peaks = [row["peak_rss_mib"] for row in rows if isinstance(row.get("peak_rss_mib"), (int, float))]
    return Headline(
        accuracy=rows[-1]["test_accuracy"],
        best_accuracy=best["test_accuracy"],
        best_epoch=best["epoch"],
        epochs=rows[-1]["epoch"],
        planned=run.recipe.epochs,
        seconds=sum(row["seconds"] for row in rows),
        images_per_second=statistics.median(row["images_per_second"] for row in rows),
        peak_mib=max(peaks, default=None),
    )


def paper_of(run: TrainedRun) -> Paper | None:
    """Return the number of the first published table that has the recipe, in full or with fewer epochs."""
    for experiment in EXPERIMENTS.values():
        row = row_of(effective(asdict(run.recipe)), experiment)
        if row is None or row.paper is None or experiment.source is None:
            continue
        source = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", experiment.source)
        done = run.metrics[-1]["epoch"] == experiment.epochs
        gap = row.gap(run.metrics[-1]["test_accuracy"]) if done else None
        return Paper(row.paper, f"{source}: {experiment.title}, {row.label}", experiment.epochs, gap)
    return None


def _weights(model: Model, missing: list[Missing]) -> list[LayerWeights]:
    try:
        return fits(model)
    except UserError as error:
        missing.append(Missing(f"no weight histograms: {error}"))
        return []


def _check_fits(run: TrainedRun, model: Model, dataset: Dataset) -> None:
    takes = model.config["in_chans"], model.config["num_classes"]
    if takes != (dataset.in_chans, dataset.num_classes):
        raise UserError(
            f"{run.folder} has a model of {takes[0]} channels and {takes[1]} classes; {dataset.name} has "
            f"{dataset.in_chans} and {dataset.num_classes}: the run was trained on another data set"
        )


def _program(path: Path, model: Model, dataset: Dataset | None, workers: int | None) -> IntegerProgram:
    engine = Engine(path)
    channels, *size = engine.shape
    takes = (channels, engine.classes)
    ours = (model.config["in_chans"], model.config["num_classes"])
    if takes != ours:
        raise UserError(
            f"{path.name} has {takes[0]} channels and {takes[1]} classes, the run's model {ours[0]} and {ours[1]}: "
            "it was not made from this run"
        )
    accuracy = None
    if dataset is not None:
        test = dataset.test
        found = [*test.pixels.shape[2:]] if isinstance(test, Split) else [test.size, test.size]
        if size != found:
            raise UserError(
                f"{path.name} takes images of {size[0]} x {size[1]}; those of {dataset.name} have "
                f"{found[0]} x {found[1]}: it was not made from this run"
            )
        accuracy = predict(engine, open_batches(test, BATCH, workers=workers), engine.classes, keep=0).accuracy
    seconds = Engine(path, threads=1).benchmark(1, REPETITIONS)
    return IntegerProgram(path.name, accuracy, seconds, engine.file_bytes, engine.arena_bytes, engine.about)


def _add_pictures(content: Content, dataset: Dataset) -> None:
    assert content.predictions is not None
    normalization = dataset.test.normalization or dataset.normalization
    content.stretched = normalization is None
    try:
        for mistake in content.predictions.mistakes:
            x = mistake.image
            pixels = stretched(x) if normalization is None else x * normalization.std + normalization.mean
            label, predicted = content.classes[mistake.label], content.classes[mistake.predicted]
            content.pictures.append(Picture(data_uri(pixels), mistake.index, label, predicted, mistake.confidence))
    except UserError as error:
        content.missing.append(Missing(f"no images of the mistakes: {error}"))


def stretched(x: Tensor) -> Tensor:
    """Scale an image (C, H, W) of any range linearly to 0 to 1."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp(min=1e-12)


def data_uri(pixels: Tensor) -> str:
    """Return a PNG of an image float32 (C, H, W) with values 0 to 1; if C is not 3, the channel mean in grey.

    An image larger than LARGEST_SIDE is scaled down. Raises UserError if Pillow is not installed.
    """
    scale = max(pixels.shape[1:]) / LARGEST_SIDE
    if scale > 1:
        size = [max(1, round(side / scale)) for side in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None], size, mode="area")[0]
    pixels = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True)
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    array = levels[0] if len(levels) == 1 else levels.permute(1, 2, 0)
    content = io.BytesIO()
    load_pillow().fromarray(array.numpy()).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def rounded(value: float, digits: int = 5) -> float | None:
    """Round ``value`` to significant digits; return None for a number that JSON cannot represent."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None

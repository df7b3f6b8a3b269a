"""torchadder quantize: a trained model as an integer program, in a file that predict, eval and a C program run."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchadder import files
from torchadder.cli.eval import BATCH, open_dataset
from torchadder.cli.options import METHODS, SUFFIX, DataFolder, DatasetName, OnError, Partial, Workers
from torchadder.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from torchadder.data import Dataset

CALIBRATION_BATCH = 32  # images for which every value of the network is held at a time
FINETUNE_BATCH = 128


def quantize(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT", help="A trained model, of any kind that eval reads.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar=f"FILE{SUFFIX}", help="The file to write.", show_default=False)
    ],
    dataset: DatasetName = None,
    data: DataFolder = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of activations and adder filters.")] = 8,
    method: Annotated[
        str, typer.Option(metavar="|".join(METHODS), help="How the range of an activation is chosen.")
    ] = "mse",
    images: Annotated[int, typer.Option(min=1, help="Training images to calibrate with.")] = 512,
    finetune: Annotated[int, typer.Option(metavar="EPOCHS", min=0, help="Train on with rounded numbers first.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images, and their order.")] = 0,
    partial: Partial = False,
    on_error: OnError = "stop",
    workers: Workers = None,
    test: Annotated[bool, typer.Option("--eval/--no-eval", help="Test the model and its program.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make an integer program of a trained model, and compare the two on the test images.

    It is calibrated with training images, not augmented, of the data set that the model was trained on. Where it
    loses too much, with few bits above all, --finetune trains the model on as the program will compute.
    """
    from torchadder import quant
    from torchadder.data import open_batches
    from torchadder.engine import Engine
    from torchadder.models.checkpoint import read_checkpoint
    from torchadder.quant.file import write
    from torchadder.quant.finetune import finetune as finetuned
    from torchadder.quant.program import Layer
    from torchadder.version import __version__

    if method not in METHODS:
        raise UserError(f"--method {method} is unknown: expected {', '.join(METHODS)}")
    files.check_writable(out, SUFFIX)
    model, origin = read_checkpoint(checkpoint)
    config = model.config
    takes = config["in_chans"], config["num_classes"]
    name = dataset or origin.dataset
    split = open_dataset(checkpoint, name, data, takes, partial=partial, on_error=on_error)
    calibration = _calibration(split, images, seed, workers)
    if finetune:
        stream = sys.stderr if json else sys.stdout
        batches = open_batches(
            split.train,
            min(FINETUNE_BATCH, len(split.train)),
            train=True,
            augment=split.augmentation if _augmented(checkpoint) else None,
            seed=seed,
            workers=workers,
        )
        program = finetuned(
            model,
            batches,
            calibration,
            bits,
            method,  # type: ignore[arg-type]  # checked above
            epochs=finetune,
            epoch_done=lambda epoch, loss: print(f"epoch {epoch}/{finetune}  loss {loss:.4f}", file=stream, flush=True),
        )
    else:
        program = quant.quantize(model, calibration, bits, method)  # type: ignore[arg-type]
    about = {
        "torchadder": __version__,
        "model": config["name"],
        "op": config["op"],
        "dataset": split.name,
        "bits": bits,
        "method": method,
        "calibration_images": sum(map(len, calibration)),
        "finetune_epochs": finetune,
    }
    if test:
        about["float_accuracy"] = _accuracy(model, split, workers)
    write(program, out, {**about, **_for_images(split)})
    result = {
        "file": str(out),
        **about,
        "file_bytes": out.stat().st_size,
        "weights": sum(step.weight.numel() for step in program.steps if isinstance(step, Layer)),
    }
    if test:
        result |= _compared(about["float_accuracy"], _accuracy(Engine(out), split, workers), len(split.test))
    print(json_format.dumps(result) if json else _describe(result))


def _calibration(dataset: Dataset, count: int, seed: int, workers: int | None) -> list[Tensor]:
    """About ``count`` training images at random, or all of them where there are fewer, in batches of one size."""
    from torchadder.data import open_batches

    count = min(count, len(dataset.train))
    number = -(-count // CALIBRATION_BATCH)
    batches = open_batches(dataset.train, count // number, train=True, seed=seed, workers=workers)
    return [images for images, _ in islice(batches, number)]


def _augmented(checkpoint: Path) -> bool:
    """Whether the run that the checkpoint belongs to augmented its images; True where there is none to ask.

    The statistics of batch normalisation are those of such images, and others lose accuracy.
    """
    from torchadder.train.run import holds_run, saved_recipe

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return saved_recipe(folder).augment if holds_run(folder) else True


def _for_images(dataset: Dataset) -> dict[str, str]:
    """What predict needs to know of the images and the classes, as far as the data set does."""
    from torchadder.data.preprocessing import Preprocessing

    preprocessing = Preprocessing.of(dataset)
    about = preprocessing.to_dict() if preprocessing else {}
    return {**about, "classes": json_format.dumps([*dataset.classes])} if dataset.classes else about


def _accuracy(forward: Callable[[Tensor], Tensor], dataset: Dataset, workers: int | None) -> float:
    from torchadder.data import open_batches
    from torchadder.train import evaluate as scores_of

    return scores_of(forward, open_batches(dataset.test, BATCH, workers=workers)).accuracy


def _compared(before: float, after: float, count: int) -> dict[str, Any]:
    correct, float_correct = (round(accuracy * count / 100) for accuracy in (after, before))
    return {"accuracy": after, "images": count, "correct": correct, "float_correct": float_correct}


def _describe(result: dict[str, Any]) -> str:
    parts = [result["file"], result["model"], result["op"], f"{result['bits']} bits"]
    parts += [f"{result['weights']:,} weights", f"{result['file_bytes']:,} bytes"]
    parts += [f"calibrated with {result['calibration_images']:,} images ({result['method']})"]
    lines = [" · ".join(parts)]
    if "accuracy" in result:
        points = result["accuracy"] - result["float_accuracy"]
        images = result["correct"] - result["float_correct"]
        both = f"float {result['float_accuracy']:.2f}%, {result['bits']} bits {result['accuracy']:.2f}%"
        lines += [f"{result['dataset']} test {both}: {points:+.2f} points, {images:+,} of {result['images']:,} images"]
    return "\n".join(lines)

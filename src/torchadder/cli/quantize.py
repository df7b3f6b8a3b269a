"""Run ``torchadder quantize``: write a trained model as an integer program, which predict, eval and C programs run."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchadder import files
from torchadder.cli import console
from torchadder.cli.eval import BATCH, TRAIN_MORE
from torchadder.cli.options import KINDS, METHODS, SUFFIX, DataFolder, DatasetName, OnError, Partial, Weights, Workers
from torchadder.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from torchadder.data import Dataset


def quantize(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODULE:FUNCTION", help=f"{KINDS}.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar=f"FILE{SUFFIX}", help="The file to write.", show_default=False)
    ],
    weights: Weights = None,
    dataset: DatasetName = None,
    data: DataFolder = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="Bits of activations and adder filters (default: the recipe's, or 8).",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="|".join(METHODS), help="How the range of an activation is chosen.")
    ] = "mse",
    images: Annotated[int, typer.Option(min=1, help="Training images to calibrate with.")] = 512,
    finetune: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            min=0,
            help="Fine-tune with rounded values first (default: the recipe's, or 0).",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Fine-tune to the labels, or to the answers of the model.")
    ] = True,
    finetune_lr: Annotated[
        float | None,
        typer.Option(
            "--finetune-lr",
            metavar="LR",
            help="Learning rate at the start of fine-tuning (default: 0.01; without labels 0.001).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses the calibration images and their order.")] = 0,
    partial: Partial = False,
    on_error: OnError = "stop",
    workers: Workers = None,
    test: Annotated[bool, typer.Option("--eval/--no-eval", help="Test the model and its program.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make an integer program of a trained model, and compare the two on the test images.

    It is calibrated with training images, not augmented, of the data set that the model was trained on. If it loses too
    much, mostly with 4 bits or fewer, --finetune continues the training with the rounding of the program.
    """
    from torchadder import quant
    from torchadder.engine import Engine
    from torchadder.models.trained import open_trained
    from torchadder.quant.deploy import (
        calibration_images,
        finetuning_batches,
        gives_one_answer,
        image_metadata,
        matching_dataset,
        recipe_of,
    )
    from torchadder.quant.finetuning import RATES
    from torchadder.quant.steps import Layer
    from torchadder.train import Recipe
    from torchadder.train.images import check_images
    from torchadder.train.loop import class_sizes
    from torchadder.version import __version__

    if method not in METHODS:
        raise UserError(f"method={method} is unknown: expected {', '.join(METHODS)}")
    files.check_writable(out, SUFFIX)
    model, origin = open_trained(checkpoint, weights)
    config = origin.model
    recipe = recipe_of(weights or Path(checkpoint)) or Recipe
    bits = recipe.bits if bits is None else bits
    finetune = recipe.finetune if finetune is None else finetune
    if not finetune and (finetune_lr is not None or not labels):
        option = f"labels={labels}" if finetune_lr is None else f"finetune_lr={finetune_lr}"
        raise UserError(f"{option} is for fine-tuning: add finetune=EPOCHS, or leave it out")
    split = matching_dataset(
        checkpoint,
        dataset,
        origin.dataset,
        data,
        config.get("in_chans"),
        config.get("num_classes"),
        partial=partial,
        on_error=on_error,
    )
    check_images(model, split, checkpoint)
    calibration = calibration_images(split, images, seed, workers)
    about = {
        "torchadder": __version__,
        "model": config["name"],
        **({"op": config["op"]} if "op" in config else {}),
        "dataset": split.name,
        "bits": bits,
        "method": method,
        "calibration_images": sum(map(len, calibration)),
        "finetune_epochs": finetune,
    }
    if finetune:
        if finetune_lr is None:
            finetune_lr = RATES[labels][0]
        about |= {"finetune_lr": finetune_lr, **({} if labels else {"finetune_target": "answers"})}
        stream = sys.stderr if json else sys.stdout
        program = quant.finetune(
            model,
            finetuning_batches(split, weights or Path(checkpoint), seed, workers),
            calibration,
            bits,
            method,  # type: ignore[arg-type]  # checked above
            labels=labels,
            epochs=finetune,
            lr=finetune_lr,
            epoch_done=lambda epoch, loss: print(f"epoch {epoch}/{finetune}  loss {loss:.4f}", file=stream, flush=True),
        )
    else:
        program = quant.quantize(model, calibration, bits, method)  # type: ignore[arg-type]
    if test:
        about["float_accuracy"] = _accuracy(model, split, workers)
    program.save(out, about=about, **image_metadata(split))
    engine, count = Engine(out), about["calibration_images"]
    if gives_one_answer(engine, calibration, class_sizes(split.train)):
        console.warning(f"{out} gives nearly all {count:,} calibration images the same class: {TRAIN_MORE}")
    result = {
        "file": str(out),
        **about,
        "size": " x ".join(map(str, split.shape)),
        "file_bytes": out.stat().st_size,
        "weights": sum(step.weight.numel() for step in program.steps if isinstance(step, Layer)),
    }
    if test:
        result |= _compared(about["float_accuracy"], _accuracy(engine, split, workers), len(split.test))
    print(json_format.dumps(result) if json else _describe(result))


def _accuracy(forward: Callable[[Tensor], Tensor], dataset: Dataset, workers: int | None) -> float:
    from torchadder.data import open_batches
    from torchadder.train import evaluate as scores_of

    return scores_of(forward, open_batches(dataset.test, BATCH, workers=workers)).accuracy


def _compared(before: float, after: float, count: int) -> dict[str, Any]:
    correct, float_correct = (round(accuracy * count / 100) for accuracy in (after, before))
    return {"accuracy": after, "images": count, "correct": correct, "float_correct": float_correct}


def _describe(result: dict[str, Any]) -> str:
    parts = [result["file"], result["model"], *([result["op"]] if "op" in result else []), f"{result['bits']} bits"]
    parts += [f"{result['weights']:,} weights", f"{result['file_bytes']:,} bytes"]
    parts += [f"calibrated with {result['calibration_images']:,} images of {result['size']} ({result['method']})"]
    lines = [" · ".join(parts)]
    if "accuracy" in result:
        points = result["accuracy"] - result["float_accuracy"]
        images = result["correct"] - result["float_correct"]
        both = f"float {result['float_accuracy']:.2f}%, {result['bits']} bits {result['accuracy']:.2f}%"
        lines += [f"{result['dataset']} test {both}: {points:+.2f} points, {images:+,} of {result['images']:,} images"]
    return "\n".join(lines)

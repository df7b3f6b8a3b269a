"""torchadder eval: the accuracy of a trained model on the test images of a data set."""

import json as json_format
import time
from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli.options import WORKERS
from torchadder.data import list_datasets, load_dataset, open_batches
from torchadder.errors import UserError
from torchadder.models.checkpoint import read_checkpoint
from torchadder.train import evaluate as evaluate_model

MANY_CLASSES = 100  # from here on the top-5 accuracy says something


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="A run directory or a checkpoint file of one, a directory written by save_pretrained, a "
            "safetensors file, or a .pth in the layout of the AdderNet authors.",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"One of: {', '.join(list_datasets())} (default: the one it was trained on, where it says so).",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the data files (default $TORCHADDER_DATA, the cache, or fetched)."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept data files that hold only a part of the published images.")
    ] = False,
    on_error: Annotated[
        str, typer.Option(help="What to do about an image that does not decode: stop or skip.")
    ] = "stop",
    workers: Annotated[int | None, typer.Option(min=0, help=WORKERS, show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Test a trained model. A run directory stands for its best epoch; its last.pt is the last one."""
    model, about = read_checkpoint(checkpoint)
    name = dataset or about.dataset
    if name is None:
        raise UserError(f"{checkpoint} does not say what it was trained on: add --dataset {'|'.join(list_datasets())}")
    images = load_dataset(name, data, partial=partial, on_error=on_error)
    config = model.config
    if (images.in_chans, images.num_classes) != (config["in_chans"], config["num_classes"]):
        raise UserError(
            f"{checkpoint} takes {config['in_chans']} channels and knows {config['num_classes']} classes; "
            f"{images.name} has {images.in_chans} and {images.num_classes}: choose another --dataset"
        )
    batches = open_batches(images.test, 256, workers=workers)
    start = time.perf_counter()
    scores = evaluate_model(model, batches)
    seconds = time.perf_counter() - start
    count = len(images.test)
    correct = round(scores.accuracy * count / 100)
    if json:
        result = {
            "checkpoint": str(checkpoint),
            "model": config["name"],
            "op": config["op"],
            "epoch": about.epoch,
            "dataset": images.name,
            "images": count,
            "correct": correct,
            "accuracy": scores.accuracy,
            "top5_accuracy": scores.top5,
            "loss": scores.loss,
            "seconds": seconds,
            "images_per_second": count / seconds,
        }
        print(json_format.dumps(result))
        return
    parts = [config["name"], config["op"]]
    parts += [f"epoch {about.epoch}"] if about.epoch is not None else []
    parts += [f"{images.name} test {scores.accuracy:.2f}%"]
    parts += [f"top-5 {scores.top5:.2f}%"] if images.num_classes >= MANY_CLASSES else []
    parts += [f"loss {scores.loss:.4f}"]
    print(" · ".join([*parts, f"{count:,} images in {seconds:.1f} s", f"{correct:,}/{count:,} correct"]))

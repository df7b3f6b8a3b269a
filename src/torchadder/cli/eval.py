"""torchadder eval: the accuracy of a trained model on the test images of a data set."""

import json as json_format
import time
from pathlib import Path
from typing import Annotated

import typer

from torchadder.data import Batches, load_dataset
from torchadder.errors import UserError
from torchadder.models.checkpoint import read_checkpoint
from torchadder.train import evaluate as evaluate_model


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run directory, or a checkpoint file of one.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set (default: the one it was trained on).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the data files (default $TORCHADDER_DATA, the cache, or fetched)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Test a trained model. A run directory stands for its best epoch; its last.pt is the last one."""
    model, about = read_checkpoint(checkpoint)
    images = load_dataset(dataset or about.dataset, data)
    config = model.config
    if (images.in_chans, images.num_classes) != (config["in_chans"], config["num_classes"]):
        raise UserError(
            f"{checkpoint} takes {config['in_chans']} channels and knows {config['num_classes']} classes; "
            f"{images.name} has {images.in_chans} and {images.num_classes}: choose another --dataset"
        )
    batches = Batches(images.test, batch_size=256)
    start = time.perf_counter()
    scores = evaluate_model(model, batches)
    seconds = time.perf_counter() - start
    count = len(images.test)
    if json:
        result = {
            "checkpoint": str(checkpoint),
            "model": config["name"],
            "op": config["op"],
            "epoch": about.epoch,
            "dataset": images.name,
            "images": count,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "seconds": seconds,
            "images_per_second": count / seconds,
        }
        print(json_format.dumps(result))
        return
    parts = [
        config["name"],
        config["op"],
        f"epoch {about.epoch}",
        f"{images.name} test {scores.accuracy:.2f}%",
    ]
    print(" · ".join([*parts, f"loss {scores.loss:.4f}", f"{count:,} images in {seconds:.1f} s"]))

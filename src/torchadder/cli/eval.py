"""Run ``torchadder eval``: test a trained model or an integer program on the test images of a data set."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torchadder.cli import console
from torchadder.cli.options import SUFFIX, DataFolder, DatasetName, OnError, Partial, Workers
from torchadder.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MANY_CLASSES = 100  # with fewer classes the top-5 accuracy is not printed
BATCH = 256  # images
ONE_ANSWER = (
    "gives {} the same class: the network has learned nothing, or its batch normalisation has statistics of other "
    "weights; train longer, or with --norm-batches 50"
)


class Network(NamedTuple):
    """Hold what is tested: a function from images to logits, its input and output, and a description of it."""

    forward: Callable[[Tensor], Tensor]
    channels: int
    classes: int
    size: tuple[int, int] | None  # height and width of the images; None accepts any
    dataset: str | None  # the data set that it was trained on, if it says so
    words: list[str]  # the description for people
    about: dict[str, Any]  # the description for --json
    device: torch.device | str = "cpu"


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar=f"RUN|CHECKPOINT|FILE{SUFFIX}",
            help="A run directory or a checkpoint file of one, a directory written by save_pretrained, a "
            "safetensors file, a .pth in the layout of the AdderNet authors, or what quantize wrote.",
        ),
    ],
    dataset: DatasetName = None,
    data: DataFolder = None,
    partial: Partial = False,
    on_error: OnError = "stop",
    workers: Workers = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help=f"Threads that run a {SUFFIX} file (default: torch's).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Test a trained model, on a GPU if there is one, or an integer program that quantize wrote.

    A run directory means its best epoch; its last.pt is the last one.
    """
    from torchadder.data import open_batches
    from torchadder.quant.deploy import matching_dataset
    from torchadder.train import evaluate as scores_of

    network = _program(checkpoint, threads) if checkpoint.suffix == SUFFIX else _model(checkpoint, threads)
    images = matching_dataset(
        checkpoint,
        dataset or network.dataset,
        data,
        network.channels,
        network.classes,
        network.size,
        partial=partial,
        on_error=on_error,
    )
    batches = open_batches(images.test, BATCH, device=network.device, workers=workers)
    start = time.perf_counter()
    scores = scores_of(network.forward, batches)
    seconds = time.perf_counter() - start
    count = len(images.test)
    correct = round(scores.accuracy * count / 100)
    if scores.answers == 1 < count:
        console.warning(f"{checkpoint} {ONE_ANSWER.format(f'all {count:,} test images')}")
    if json:
        result = {
            "checkpoint": str(checkpoint),
            **network.about,
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
    parts = [*network.words, f"{images.name} test {scores.accuracy:.2f}%"]
    parts += [f"top-5 {scores.top5:.2f}%"] if images.num_classes >= MANY_CLASSES else []
    parts += [f"loss {scores.loss:.4f}", f"{count:,} images in {seconds:.1f} s", f"{correct:,}/{count:,} correct"]
    if "file_bytes" in network.about:
        sizes = [network.about[name] / 1024 for name in ("file_bytes", "arena_bytes")]
        parts += [f"{count / seconds:,.0f} images/s", "memory {:,.0f} + {:,.0f} KiB (file + arena)".format(*sizes)]
    print(" · ".join(parts))


def _model(path: Path, threads: int | None) -> Network:
    if threads is not None:
        raise UserError(f"threads={threads} is for a {SUFFIX} file: for {path} set OMP_NUM_THREADS, which torch reads")
    from torchadder.models.checkpoint import read_checkpoint
    from torchadder.train.distributed import alone

    model, about = read_checkpoint(path)
    device = alone().device
    model.to(device)
    config = model.config
    words = [config["name"], config["op"], *([f"epoch {about.epoch}"] if about.epoch is not None else [])]
    return Network(
        model,
        config["in_chans"],
        config["num_classes"],
        None,
        about.dataset,
        words,
        {"model": config["name"], "op": config["op"], "epoch": about.epoch},
        device,
    )


def _program(path: Path, threads: int | None) -> Network:
    from torchadder.engine import Engine

    engine = Engine(path, threads)
    known: dict[str, Any] = {
        name: engine.about[name] for name in ("model", "op", "bits", "dataset") if name in engine.about
    }
    name = known.pop("dataset", None)
    words = [console.printable(value) for value in known.values()] or [path.name]
    if "bits" in known:
        words[-1] += " bits"
    sizes = {"file_bytes": engine.file_bytes, "arena_bytes": engine.arena_bytes, "threads": engine.threads}
    channels, *size = engine.shape
    return Network(
        engine,
        channels,
        engine.classes,
        (size[0], size[1]),
        name if isinstance(name, str) else None,
        words,
        {**known, **sizes},
    )

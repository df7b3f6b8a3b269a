"""torchadder eval: the accuracy of a trained model, or of an integer program, on the test images of a data set."""

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

    from torchadder.data import Dataset

MANY_CLASSES = 100  # from here on the top-5 accuracy says something
BATCH = 256


class Network(NamedTuple):
    """What is tested: images -> logits, what it takes and knows, and what to say of it, in words and as JSON."""

    forward: Callable[[Tensor], Tensor]
    channels: int
    classes: int
    size: tuple[int, int] | None  # None: not fixed
    dataset: str | None
    words: list[str]
    about: dict[str, Any]
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
    """Test a trained model, on a GPU if there is one, or the integer program that quantize made of one.

    A run directory stands for its best epoch; its last.pt is the last one.
    """
    from torchadder.data import open_batches
    from torchadder.train import evaluate as scores_of

    network = _program(checkpoint, threads) if checkpoint.suffix == SUFFIX else _model(checkpoint, threads)
    name = dataset or network.dataset
    images = open_dataset(
        checkpoint, name, data, (network.channels, network.classes), network.size, partial=partial, on_error=on_error
    )
    batches = open_batches(images.test, BATCH, device=network.device, workers=workers)
    start = time.perf_counter()
    scores = scores_of(network.forward, batches)
    seconds = time.perf_counter() - start
    count = len(images.test)
    correct = round(scores.accuracy * count / 100)
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


def open_dataset(
    path: Path,
    name: str | None,
    data: Path | None,
    channels_and_classes: tuple[int, int],
    size: tuple[int, int] | None = None,
    *,
    partial: bool,
    on_error: str,
) -> Dataset:
    """The data set ``name`` for the network in ``path``; ``size``: height and width, where only one is possible.

    Raises UserError where there is no name, and where its images or classes are not the network's.
    """
    from torchadder.data import Split, list_datasets, load_dataset

    if name is None:
        raise UserError(f"{path} does not say what it was trained on: add --dataset {'|'.join(list_datasets())}")
    images = load_dataset(name, data, partial=partial, on_error=on_error)
    if (images.in_chans, images.num_classes) != channels_and_classes:
        channels, classes = channels_and_classes
        raise UserError(
            f"{path} takes {channels} channels and knows {classes} classes; "
            f"{images.name} has {images.in_chans} and {images.num_classes}: choose another --dataset"
        )
    test = images.test
    found = tuple(test.pixels.shape[2:]) if isinstance(test, Split) else (test.size, test.size)
    if size not in (None, found):
        expected, has = (f"{height} x {width}" for height, width in (size, found))
        raise UserError(f"{path} takes images of {expected}; those of {images.name} have {has}: choose another")
    return images


def _model(path: Path, threads: int | None) -> Network:
    if threads is not None:
        raise UserError(f"--threads is for a {SUFFIX} file; the number of torch's is OMP_NUM_THREADS")
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

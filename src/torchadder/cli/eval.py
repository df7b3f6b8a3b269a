"""Run ``torchadder eval``: test a trained model or an integer program on the test images of a data set."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from torchadder.cli import console
from torchadder.cli.options import KINDS, SUFFIX, DataFolder, DatasetName, OnError, Partial, Weights, Workers
from torchadder.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MANY_CLASSES = 100  # with fewer classes the top-5 accuracy is not printed
BATCH = 256  # images
TRAIN_MORE = (
    "it has learned nothing, was trained on images prepared in another way (size, mean, std), or its batch "
    "normalisation has statistics of other weights; train longer, or with --norm-batches 50"
)


class Network(NamedTuple):
    """Hold what is tested: a function from images to logits, its input and output, and a description of it."""

    forward: Callable[[Tensor], Tensor]
    channels: int | None  # None: it does not say
    classes: int | None
    size: tuple[int, int] | None  # height and width of the images; None accepts any
    dataset: str | None  # the data set that it was trained on, if it says so
    words: list[str]  # the description for people
    about: dict[str, Any]  # the description for --json
    device: torch.device | str = "cpu"


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar=f"RUN|CHECKPOINT|FILE{SUFFIX}", help=f"{KINDS}; or what quantize wrote, or pico or pico_wide."
        ),
    ],
    weights: Weights = None,
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
    from torch import nn

    from torchadder.data import open_batches
    from torchadder.engine import Engine
    from torchadder.models.pretrained import find_program
    from torchadder.quant.deploy import image_metadata, matching_dataset
    from torchadder.quant.file import describe_images, is_program
    from torchadder.train import evaluate as scores_of
    from torchadder.train.images import check_images
    from torchadder.train.loop import class_sizes, is_at_chance

    checkpoint = find_program(checkpoint)
    program = checkpoint.endswith(SUFFIX) or is_program(checkpoint)
    if program and weights is not None:
        raise UserError(f"weights={weights} is for package.module:function; {checkpoint} holds its own weights")
    network = _program(Path(checkpoint), threads) if program else _model(checkpoint, weights, threads)
    images = matching_dataset(
        checkpoint,
        dataset,
        network.dataset,
        data,
        network.channels,
        network.classes,
        network.size,
        partial=partial,
        on_error=on_error,
    )
    if isinstance(engine := network.forward, Engine):
        about = describe_images(engine.shape[0], engine.classes, **image_metadata(images))
        if other := [name for name, value in about.items() if engine.about.get(name, value) != value]:
            console.warning(
                f"{images.name} has not the {', '.join(other)} of {checkpoint}: the accuracy counts only where classes "
                "have the same order, and normalize=MEAN/STD is that of the training"
            )
    if isinstance(network.forward, nn.Module):
        check_images(network.forward, images, checkpoint)
        network.forward.to(network.device)
    batches = open_batches(images.test, BATCH, device=network.device, workers=workers)
    start = time.perf_counter()
    scores = scores_of(network.forward, batches)
    seconds = time.perf_counter() - start
    count = len(images.test)
    correct = round(scores.accuracy * count / 100)
    if is_at_chance(scores.accuracy, class_sizes(images.test)):
        console.warning(f"{checkpoint} is no better than one answer to all {count:,} test images: {TRAIN_MORE}")
    if json:
        result = {
            "checkpoint": checkpoint,
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
    trained = f" (trained on {network.dataset})" if network.dataset not in (None, images.name) else ""
    parts = [*network.words, f"{images.name} test {scores.accuracy:.2f}%{trained}"]
    parts += [f"top-5 {scores.top5:.2f}%"] if images.num_classes >= MANY_CLASSES else []
    parts += [f"loss {scores.loss:.4f}", f"{count:,} images in {seconds:.1f} s", f"{correct:,}/{count:,} correct"]
    if "file_bytes" in network.about:
        sizes = [network.about[name] / 1024 for name in ("file_bytes", "arena_bytes")]
        parts += [f"{count / seconds:,.0f} images/s", "memory {:,.0f} + {:,.0f} KiB (file + arena)".format(*sizes)]
    print(" · ".join(parts))


def _model(name: str, weights: Path | None, threads: int | None) -> Network:
    if threads is not None:
        raise UserError(f"threads={threads} is for a {SUFFIX} file: for {name} set OMP_NUM_THREADS, which torch reads")
    from torchadder.models.trained import open_trained
    from torchadder.train.distributed import alone

    model, about = open_trained(name, weights)
    device = alone().device
    config = about.model
    words = [config[name] for name in ("name", "op") if name in config]
    words += [f"epoch {about.epoch}"] if about.epoch is not None else []
    return Network(
        model,
        config.get("in_chans"),
        config.get("num_classes"),
        None,
        about.dataset,
        words,
        {"model": config["name"], "op": config.get("op"), "epoch": about.epoch},
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

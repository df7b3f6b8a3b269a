"""Run ``torchadder predict``: print the likeliest classes of images, which an integer program computes."""

import json as json_format
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from torchadder.cli import console
from torchadder.cli.options import SUFFIX


def predict(
    file: Annotated[
        str,
        typer.Argument(metavar=f"FILE{SUFFIX}", help="An integer program, or pico or pico_wide.", show_default=False),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files: JPEG, PNG, PGM, ...", show_default=False)
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 3,
    invert: Annotated[bool, typer.Option("--invert", help="Exchange light and dark in the images first.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (default: torch's).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Print the likeliest classes of images, their scores (softmax), and the time of the inference.

    Images are converted to the colours, the size and the range that the network was trained on. An image that cannot be
    read is named, the others are still predicted, and the exit code is 2.
    """
    import torch

    from torchadder.data.images import TITLES, error_reason, load_pillow
    from torchadder.engine import Classifier
    from torchadder.models.pretrained import find_program
    from torchadder.quant.deploy import SEVERAL

    classifier = Classifier(find_program(file), threads)
    engine, preprocessing, names = classifier.engine, classifier.preprocessing, classifier.names
    _, height, width = engine.shape
    pillow = load_pillow()
    engine(torch.zeros(1, *engine.shape, dtype=torch.float32))  # warms up, as Engine.benchmark does
    results: list[dict[str, Any]] = []
    failed, resized, opposite = [], False, None
    for path in images:
        try:
            x, size = preprocessing.read(pillow, path.read_bytes(), (height, width), invert)
        except Exception as error:  # a damaged image may raise anything
            failed.append({"image": str(path), "reason": error_reason(error)})
            console.error(f"{path} cannot be used ({error_reason(error)}): expected an image, {TITLES}")
            continue
        if size != (height, width) and not resized:
            resized = True
            had = f"{path} has {size[0]} x {size[1]} pixels"
            print(f"{had}: such images are resized to {height} x {width}", file=sys.stderr, flush=True)
        if not opposite and (opposite := preprocessing.opposite_ground(x)):
            advice = "leave out --invert" if invert else "pass --invert"
            print(f"{path} is {opposite}: {advice}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        logits = engine(x)
        seconds = time.perf_counter() - start
        scores, classes = logits.softmax(1)[0].topk(min(top, engine.classes))
        likeliest = [
            {"class": label, "name": names[label], "score": score}
            for label, score in zip(classes.tolist(), scores.tolist(), strict=True)
        ]
        results.append({"image": str(path), "classes": likeliest, "seconds": seconds})
        if not json:
            found = "  ".join(f"{console.printable(c['name'])} {100 * c['score']:.1f}%" for c in likeliest)
            print(f"{path}  {found}  {1000 * seconds:.2f} ms")
    answers = {result["classes"][0]["name"] for result in results}
    if len(results) >= SEVERAL and len(answers) == 1:
        same = f"all {len(results)} images get the class {console.printable(*answers)}"
        console.warning(f"{same}: if they are not all of it, train longer, or with --norm-batches 50")
    if json:
        print(json_format.dumps({"file": file, "images": results, "failed": failed}))
    if failed:
        raise typer.Exit(2)

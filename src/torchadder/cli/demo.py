"""Run `torchadder demo`: serve a local page: draw a digit and see the class that an integer program predicts."""

from __future__ import annotations

import os
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from torchadder.cli import console
from torchadder.cli.options import SUFFIX


def demo(
    file: Annotated[
        Path, typer.Argument(metavar=f"FILE{SUFFIX}", help="A file that quantize wrote.", show_default=False)
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")] = 0,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
) -> None:
    """Draw a digit on a local page and see at once what FILE predicts, with its distances and its time.

    Programs for colour take an image instead. The page is for this machine alone (127.0.0.1) and loads nothing from
    elsewhere. Ctrl-C ends it.
    """
    from torchadder.lab.demo import DemoClassifier, Server

    classifier = DemoClassifier(file, threads)
    with Server(classifier, port) as server:
        about = [console.printable(value) for value in classifier.describe()["about"]]
        print(" · ".join([file.name, *about]))
        print(f"draw at {server.url}  (Ctrl-C ends it)", flush=True)
        if show and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
            threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()

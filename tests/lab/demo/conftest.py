"""Write programs with random weights, grey for drawings and colour for images, and start demo servers for them."""

import json
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from torchadder.lab.bench.networks import with_statistics
from torchadder.lab.demo import DemoClassifier, Server
from torchadder.models import create_model
from torchadder.quant import quantize

GREY = {
    "model": "lenet5bn",
    "op": "adder",
    "dataset": "mnist",
    "bits": 8,
    "mode": "L",
    "mean": "0.1307",
    "std": "0.3081",
}
COLOUR = {"model": "tiny", "mode": "RGB", "mean": "0.5 0.4 0.3", "std": "0.2 0.25 0.3", "part": "whole"}
NAMES = ["<b>cat</b>", "dog", "frog"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Return a folder with grey.tadder, a LeNet-5-BN of adder layers, and colour.tadder, for images of 3 x 12 x 16."""
    folder = tmp_path_factory.mktemp("programs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.randn(16, 1, 32, 32)
        lenet = with_statistics(create_model("lenet5bn"), images)
        quantize(lenet, [images], method="max").save(folder / "grey.tadder", about={**GREY, "part": "whole"})
        images = torch.randn(16, 3, 12, 16)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 5 * 7, 3)
        program = quantize(nn.Sequential(*layers), [images], method="max")
        program.save(folder / "colour.tadder", about={**COLOUR, "classes": json.dumps(NAMES)})
    return folder


@pytest.fixture
def serve(one_thread):
    """Start a server for a classifier in a thread; it ends with the test."""
    with ExitStack() as stack:

        def start(classifier):
            server = stack.enter_context(Server(classifier))
            threading.Thread(target=server.serve_forever, args=[0.01]).start()
            stack.callback(server.shutdown)
            return server

        yield start


@pytest.fixture
def grey(programs, serve):
    return serve(DemoClassifier(programs / "grey.tadder"))

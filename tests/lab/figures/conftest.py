"""Train one adder and one ordinary network on the tiny data set for all tests of figures."""

import pytest
from tests.conftest import registered, tiny

from torchadder.lab.runs import TrainedRun
from torchadder.train import Recipe, Run, train


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with registered("tiny", tiny):
        for op in ("adder", "conv"):
            recipe = Recipe("lenet5bn-tiny", model="lenet5bn", dataset="tiny", op=op, epochs=2, batch_size=16)
            train(Run.open(root / op, recipe))
    return [root / "adder", root / "conv"]


@pytest.fixture
def runs(tiny_recipe, one_thread, folders):
    """Return the trained runs of an AdderNet and a CNN."""
    return [TrainedRun.read(folder) for folder in folders]

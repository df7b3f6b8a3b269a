"""Give every test here the recipe on tiny data and one thread; some share a trained model and its program."""

import os

import pytest
from tests.conftest import patterns, registered

from torchadder.cli import main
from torchadder.data import registry as datasets

CLASSES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(autouse=True)
def tiny_world(tiny_recipe, one_thread, monkeypatch):
    """Hide the packages of the report from train: a page at the end of each run would take seconds."""
    monkeypatch.setattr("torchadder.lab.report.is_installed", lambda: False)


def pixels(data_dir=None):
    return patterns("pixels", 0.5, 320, 30, CLASSES)


@pytest.fixture
def pixels_dataset(monkeypatch):
    monkeypatch.setitem(datasets._DATASETS, "pixels", pixels)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return a folder with `run`, a LeNet-5-BN trained on the pixels, and `run.tadder`, its integer program."""
    folder = tmp_path_factory.mktemp("trained")
    with registered("pixels", pixels):
        run = str(folder / "run")
        train = ["train", "lenet5bn-mnist", "--dataset", "pixels", "--epochs", "6", "--batch-size", "16", "--out", run]
        train.append("--no-report")
        assert main(train) == 0
        assert main(["quantize", run, "-o", f"{run}.tadder"]) == 0
    return folder


@pytest.fixture
def folder(trained, pixels_dataset, tmp_path, monkeypatch):
    """Change to an empty folder with links to run and run.tadder, and return it."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "run.tadder"):
        os.symlink(trained / name, name)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command, checks that it ends as a user's mistake in one line, and returns that."""

    def run(arguments):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run

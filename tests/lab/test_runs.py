"""Test reading run directories: their contents and different titles; tests/cli/test_report.py has what is refused."""

from pathlib import Path

import pytest

from torchadder.lab.runs import TrainedRun, titles
from torchadder.train import Run, get_recipe


def test_a_run_is_read_as_it_was_written(trained):
    folder = trained(seed=3)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run = TrainedRun.read(folder)
    assert (run.recipe.seed, run.recipe.epochs) == (3, 2)
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    assert "torch" in run.environment
    assert run.model().config["name"] == run.recipe.model
    assert len(run.dataset().test) > 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_model_is_that_of_the_last_epoch(trained):
    run = TrainedRun.read(trained())
    state = Run.open(run.folder, run.recipe, resume=True).state["model"]
    assert all(bool((value == state[name]).all()) for name, value in run.model().state_dict().items())


def test_a_damaged_environment_is_no_error(trained):
    folder = trained()
    (folder / "environment.json").write_text("[")
    assert TrainedRun.read(folder).environment == {}


def run(folder="run", **changes):
    return TrainedRun(Path(folder), get_recipe("lenet5bn-mnist", changes), [], {})


TITLES = [  # runs -> titles
    ([run()], ["AdderNet, full gradient, ALR, eta 0.1"]),
    ([run(op="conv"), run(op="binary")], ["CNN", "BNN"]),
    ([run(op="conv"), run(op="conv", seed=1)], ["CNN, seed 0", "CNN, seed 1"]),
    (
        [run(weight_grad="sign", lr_scheme="ilr"), run(eta=0.5, epochs=1)],
        ["AdderNet, sign gradient, ILR", "AdderNet, full gradient, ALR, eta 0.5"],
    ),
    ([run("here/a", op="conv"), run("there/b", op="conv")], ["CNN, a", "CNN, b"]),
    ([run("here/a", op="conv"), run("there/a", op="conv")], ["CNN, here/a", "CNN, there/a"]),
]


@pytest.mark.parametrize(("runs", "expected"), TITLES)
def test_titles_differ(runs, expected):
    assert titles(runs) == expected

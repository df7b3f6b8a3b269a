"""Test reading run directories: their contents and different titles; tests/cli/test_report.py has what is refused."""

import pytest

from torchadder.lab.runs import TrainedRun, titles
from torchadder.train import Run


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


TITLES = [  # changes of each run -> titles
    ([{}], ["AdderNet, full gradient, ALR, eta 0.2"]),
    ([{"op": "conv"}, {"op": "binary"}], ["CNN", "BNN"]),
    ([{"op": "conv"}, {"op": "conv", "seed": 1}], ["CNN, seed 0", "CNN, seed 1"]),
    (
        [{"weight_grad": "sign", "lr_scheme": "ilr"}, {"eta": 0.5, "epochs": 1}],
        ["AdderNet, sign gradient, ILR", "AdderNet, full gradient, ALR, eta 0.5"],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), TITLES)
def test_titles_differ(trained, changes, expected):
    runs = [TrainedRun.read(trained(f"run{i}", **change)) for i, change in enumerate(changes)]
    assert titles(runs) == expected


@pytest.mark.parametrize(
    ("folders", "expected"), [(("here/a", "there/b"), ["CNN, a", "CNN, b"]), (("here/a", "there/a"), None)]
)
def test_titles_of_equal_recipes_contain_folders(trained, folders, expected):
    runs = [TrainedRun.read(trained(folder, op="conv", epochs=1)) for folder in folders]
    assert titles(runs) == (expected or [f"CNN, {run.folder}" for run in runs])

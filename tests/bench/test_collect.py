"""benchmarks/collect.py: from run directories to one record."""

import json
import statistics

import pytest
import torch

from torchadder.data import Dataset, Split
from torchadder.data import registry as datasets
from torchadder.train import Recipe, Run, train

ENVIRONMENT = {
    "torchadder": "0.1.0",
    "torch": "2.13.0",
    "numpy": "2.4.0",
    "python": "3.11.7",
    "platform": "Linux",
    "processor": "Abacus 3000",
    "threads": 1,
    "kernels": "avx2",
}


@pytest.fixture
def finished(tmp_path):
    """A run directory as train leaves it behind; its accuracies are those given, epoch by epoch."""

    def write(name, *accuracies, environment=None, epochs=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        recipe = Recipe("lenet5bn-mnist", "lenet5bn", "mnist", epochs=epochs or len(accuracies), **changes)
        (folder / "recipe.json").write_text(recipe.to_json())
        command = f"torchadder train lenet5bn-mnist --op {recipe.op} --data /data/mnist --out {folder}"
        about = {"command": command, **ENVIRONMENT, **(environment or {})}
        (folder / "environment.json").write_text(json.dumps(about))
        rows = [
            {
                **{"epoch": epoch, "test_accuracy": accuracy, "seconds": 60.0 + epoch},
                **{"images_per_second": 1000.0 + epoch, "peak_rss_mib": 500.0 + epoch},
            }
            for epoch, accuracy in enumerate(accuracies, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return write


def test_the_record(collect, finished, tmp_path, capsys):
    runs = [
        finished("b", 99.0, 99.9, 99.5, seed=2),
        finished("a", 99.0, 99.1, 99.25, seed=1),
        finished("cnn", 98.0, 99.5, 99.45, op="conv"),
    ]
    output = tmp_path / "results" / "mnist-lenet5bn.json"
    assert collect.main([*map(str, runs), "-o", str(output)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "adder alr 0.2 full, 3 epochs: 99.38% over 2 seeds",
        "conv, 3 epochs: 99.45% over 1 seed",
        f"written to {output}",
    ]
    assert err == ""
    text = output.read_text()
    assert str(tmp_path) not in text
    assert "/data" not in text
    record = json.loads(text)
    assert record["environment"] == ENVIRONMENT
    assert record["differing"] == []
    adder, conv = record["rows"]
    assert {name: adder[name] for name in ("op", "lr_scheme", "eta", "grad", "epochs", "n", "seeds")} == {
        **{"op": "adder", "lr_scheme": "alr", "eta": 0.2, "grad": "full", "epochs": 3, "n": 2, "seeds": [1, 2]}
    }
    assert adder["accuracy"] == [99.25, 99.5]  # of the last epoch, which here is not the best
    assert adder["mean"] == 99.375
    assert adder["std"] == pytest.approx(statistics.stdev([99.25, 99.5]), abs=1e-6)
    assert (adder["seconds_per_epoch"], adder["minutes"]) == (62.0, pytest.approx(186 / 60))
    assert (adder["images_per_second"], adder["peak_rss_mib"], adder["threads"]) == (1002.0, 503.0, [1])
    assert "seed" not in adder["recipe"]
    assert [run["seed"] for run in adder["runs"]] == [1, 2]
    assert adder["runs"][0]["command"] == "torchadder train lenet5bn-mnist --op adder"
    assert adder["runs"][0]["environment"] == {}
    assert {name: conv[name] for name in ("lr_scheme", "eta", "grad", "n", "std")} == {
        **{"lr_scheme": None, "eta": None, "grad": None, "n": 1, "std": None}
    }


@pytest.mark.parametrize(
    ("one", "other", "rows"),
    [
        ({}, {}, 1),
        ({}, {"eta": 0.1}, 2),
        ({}, {"lr_scheme": "ilr"}, 2),
        ({}, {"weight_grad": "sign", "input_grad": "sign"}, 2),
        ({}, {"epochs": 1}, 2),
        ({}, {"ilr_factor": 7.0}, 1),  # has no effect under ALR
        ({"op": "conv"}, {"op": "conv", "eta": 0.1, "lr_scheme": "ilr"}, 1),  # nor any of these on a CNN
        ({"lr_scheme": "ilr"}, {"lr_scheme": "ilr", "ilr_factor": 7.0}, 2),
        ({"lr_scheme": "ilr"}, {"lr_scheme": "ilr", "eta": 0.7}, 1),
    ],
)
def test_rows_are_recipes_seeds_aside(collect, finished, one, other, rows):
    runs = [finished("one", 99.0, 99.1, **{"epochs": 2, **one}), finished("other", 99.0, 99.2, seed=1, **other)]
    assert len(collect.collect(runs)["rows"]) == rows


@pytest.mark.parametrize(
    ("changes", "grad"),
    [
        ({"weight_grad": "sign", "input_grad": "sign"}, "sign"),
        ({"weight_grad": "sign"}, "weight sign, input hardtanh"),
        ({"op": "conv"}, None),
    ],
)
def test_gradients_have_the_name_of_the_flag(collect, finished, changes, grad):
    assert collect.collect([finished("run", 99.0, **changes)])["rows"][0]["grad"] == grad


def test_other_machines_are_listed_run_by_run(collect, finished, tmp_path, capsys):
    runs = [finished("a", 99.0), finished("b", 99.0, seed=1, environment={"processor": "Slide rule", "threads": 2})]
    output = tmp_path / "out.json"
    assert collect.main([*map(str, runs), "-o", str(output)]) == 0
    assert capsys.readouterr().err == "note: the runs differ in processor, threads: listed run by run\n"
    record = json.loads(output.read_text())
    assert record["differing"] == ["processor", "threads"]
    assert "processor" not in record["environment"]
    (row,) = record["rows"]
    assert row["threads"] == [1, 2]
    environments = [run["environment"] for run in row["runs"]]
    assert environments == [
        {"processor": "Abacus 3000", "threads": 1},
        {"processor": "Slide rule", "threads": 2},
    ]


def test_a_run_resumed_elsewhere_lists_both_places(collect, finished):
    resumed = {**ENVIRONMENT, "torch": "2.14.0"}
    record = collect.collect([finished("a", 99.0, environment={"resumed": [ENVIRONMENT, resumed]})])
    assert record["differing"] == ["torch"]
    assert record["rows"][0]["runs"][0]["environment"] == {"torch": ["2.13.0", "2.14.0"]}


def test_an_epoch_that_was_run_again_counts_once_and_a_torn_line_not_at_all(collect, finished):
    folder = finished("a", 99.0, 99.1)
    path = folder / "metrics.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, second.replace("99.1", "50.0"), second[:20], second]) + "\n")
    (row,) = collect.collect([folder])["rows"]
    assert (row["accuracy"], row["minutes"]) == ([99.1], pytest.approx((61 + 62) / 60))


def unfinished(finished):
    return [finished("a", 99.0, 99.1, epochs=3)]


def with_a_gap(finished):
    folder = finished("a", 99.0, 99.1, 99.2)
    path = folder / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"epoch": 2' not in line))
    return [folder]


def one_seed_twice(finished):
    return [finished("a", 99.0), finished("b", 99.0, environment={"threads": 2})]


def without(name):
    def build(finished):
        folder = finished("a", 99.0)
        (folder / name).unlink()
        return [folder]

    return build


def with_text(name, text):
    def build(finished):
        folder = finished("a", 99.0)
        (folder / name).write_text(text)
        return [folder]

    return build


REFUSED = [  # runs -> the words of the one line
    (unfinished, "a is not finished (2 of 3 epochs): continue it with --resume"),
    (with_a_gap, "a is not finished (2 of 3 epochs)"),
    (one_seed_twice, "b are one recipe and one seed: leave one out"),
    (lambda finished: [finished("a", 99.0), finished("b", 99.0).parent / "c"], "c is no run of torchadder train"),
    (without("recipe.json"), "cannot read recipe.json (No such file or directory)"),
    (without("environment.json"), "cannot read environment.json"),
    (without("metrics.jsonl"), "cannot read metrics.jsonl"),
    (with_text("recipe.json", "{"), "recipe.json: no recipe of this version"),
    (with_text("recipe.json", '{"name": "x"}'), "recipe.json: no recipe of this version"),
    (with_text("environment.json", "[]"), "a holds no run of this version"),
    (with_text("environment.json", '{"command": "torchadder"}'), "a holds no run of this version"),
    (with_text("metrics.jsonl", '{"epoch": 1}\n'), "a holds no run of this version"),
    (with_text("metrics.jsonl", ""), "a is not finished (0 of 1 epochs)"),
]


@pytest.mark.parametrize(("build", "words"), REFUSED)
def test_refused(collect, finished, tmp_path, capsys, build, words):
    output = tmp_path / "out.json"
    assert collect.main([*map(str, build(finished)), "-o", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not output.exists()


def test_unwritable_output(collect, finished, tmp_path, capsys):
    assert collect.main([str(finished("a", 99.0)), "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_train_leaves_behind_can_be_collected(collect, tmp_path, monkeypatch):
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(8))
    monkeypatch.setitem(datasets._DATASETS, "tiny", lambda data_dir=None: Dataset("tiny", 10, 1, split, split))
    recipe = Recipe("lenet5bn-tiny", "lenet5bn", "tiny", epochs=2, batch_size=4)
    outcome = train(Run.open(tmp_path / "run", recipe))
    (row,) = collect.collect([tmp_path / "run"])["rows"]
    assert row["accuracy"] == [outcome.accuracy]
    assert row["minutes"] == pytest.approx(outcome.seconds / 60)

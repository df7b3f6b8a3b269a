"""Test the way from run directories to a record, and from records of any age to rows."""

import json
import statistics

import pytest
from tests.conftest import ENVIRONMENT

from torchadder.errors import UserError
from torchadder.lab import record as files
from torchadder.lab.reproduce.runs import collect, effective, read_records
from torchadder.lab.reproduce.table import machine
from torchadder.train import RECIPES, Recipe

OLD = {  # a row's recipe as version 0.1.0 of November 2026 wrote it
    **{"name": "lenet5bn-mnist", "model": "lenet5bn", "dataset": "mnist", "op": "adder", "epochs": 50},
    **{"batch_size": 256, "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005},
    **{"lr_scheme": "alr", "eta": 0.1, "ilr_factor": None, "weight_grad": "full", "input_grad": "hardtanh"},
    "channels_last": False,
}


def test_the_record(finished, tmp_path):
    runs = [
        finished("b", 99.0, 99.9, 99.5, seed=2),
        finished("a", 99.0, 99.1, 99.25, seed=1),
        finished("cnn", 98.0, 99.5, 99.45, op="conv"),
    ]
    record = files.write(tmp_path / "record.json", collect(runs))
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text) == record
    assert str(tmp_path) not in text
    assert "/data" not in text
    assert (record["benchmark"], record["date"], record["differing"]) == ("runs", "2020-06-14", [])
    assert record["environment"] == {**ENVIRONMENT, "processes": 1}
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
    assert [(run["seed"], run["date"]) for run in adder["runs"]] == [(1, "2020-06-14"), (2, "2020-06-14")]
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
        ({}, {"ema": 0.9}, 2),
        ({}, {"ilr_factor": 7.0}, 1),  # has no effect under ALR
        ({"op": "conv"}, {"op": "conv", "eta": 0.1, "lr_scheme": "ilr"}, 1),  # nor any of these on a CNN
        ({"lr_scheme": "ilr"}, {"lr_scheme": "ilr", "ilr_factor": 7.0}, 2),
        ({"lr_scheme": "ilr"}, {"lr_scheme": "ilr", "eta": 0.7}, 1),
    ],
)
def test_rows_are_recipes_seeds_aside(finished, one, other, rows):
    runs = [finished("one", 99.0, 99.1, **{"epochs": 2, **one}), finished("other", 99.0, 99.2, seed=1, **other)]
    assert len(collect(runs)["rows"]) == rows


@pytest.mark.parametrize(
    ("changes", "grad"),
    [
        ({"weight_grad": "sign", "input_grad": "sign"}, "sign"),
        ({"weight_grad": "sign"}, "weight sign, input hardtanh"),
        ({"op": "conv"}, None),
    ],
)
def test_gradients_are_named_as_options(finished, changes, grad):
    assert collect([finished("run", 99.0, **changes)])["rows"][0]["grad"] == grad


def test_other_machines_are_listed_run_by_run(finished):
    runs = [finished("a", 99.0), finished("b", 99.0, seed=1, environment={"processor": "Slide rule", "threads": 2})]
    record = collect(runs)
    assert record["differing"] == ["processor", "threads"]
    assert "processor" not in record["environment"]
    (row,) = record["rows"]
    assert row["threads"] == [1, 2]
    environments = [run["environment"] for run in row["runs"]]
    assert environments == [
        {"processor": "Abacus 3000", "threads": 1},
        {"processor": "Slide rule", "threads": 2},
    ]


def test_a_run_resumed_elsewhere_lists_both_places(finished):
    resumed = {**ENVIRONMENT, "torch": "2.14.0"}
    record = collect([finished("a", 99.0, environment={"resumed": [ENVIRONMENT, resumed]})])
    assert record["differing"] == ["torch"]
    assert record["rows"][0]["runs"][0]["environment"] == {"torch": ["2.13.0", "2.14.0"]}


def test_an_epoch_that_was_run_again_counts_once_and_a_torn_line_not_at_all(finished):
    folder = finished("a", 99.0, 99.1)
    path = folder / "metrics.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, second.replace("99.1", "50.0"), second[:20], second]) + "\n")
    (row,) = collect([folder])["rows"]
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


def with_text(name, text):
    def build(finished):
        folder = finished("a", 99.0)
        (folder / name).write_text(text)
        return [folder]

    return build


REFUSED = [  # runs -> the words of the one line
    (unfinished, "a is not finished (2 of 3 epochs): continue it with resume=True"),
    (with_a_gap, "a is not finished (2 of 3 epochs)"),
    (one_seed_twice, "b have the same recipe and seed: leave one out"),
    (lambda finished: [finished("a", 99.0), finished("b", 99.0).parent / "c"], "c holds no run"),
    (with_text("environment.json", "[]"), "a holds no run of this version"),
    (with_text("environment.json", '{"command": "torchadder"}'), "a holds no run of this version"),
    (with_text("metrics.jsonl", '{"epoch": 1}\n'), "a holds no run of this version"),
]


@pytest.mark.parametrize(("build", "words"), REFUSED)
def test_refused(finished, build, words):
    with pytest.raises(UserError) as refusal:
        collect(build(finished))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_row_of_an_older_version_is_that_of_todays_recipe():
    assert effective(OLD) == effective(vars(RECIPES["lenet5bn-mnist"]))
    assert effective({**OLD, "recenter": True}) != effective(OLD)


def test_effective_twice_is_effective():
    once = effective(vars(Recipe("x", "lenet5bn", "mnist", op="conv", seed=7)))
    assert effective(once) == once
    assert {name for name, value in once.items() if value is None} >= {"eta", "lr_scheme", "weight_grad"}


def row(**changes):
    numbers = {"epochs": 50, "n": 1, "seeds": [0], "mean": 99.0, "std": None, "minutes": 5.0, "threads": [1]}
    cost = {"seconds_per_epoch": 6.0, "images_per_second": 10000.0, "peak_rss_mib": 600.0}
    return {**numbers, **cost, "recipe": OLD, **changes}


def put(folder, name, **changes):
    about = {"benchmark": "runs", "date": "2020-06-14", "environment": {}, "differing": []}
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({**about, "rows": [row()], **changes}))


def test_records_of_other_benchmarks_are_left_out(tmp_path):
    put(tmp_path / "results", "b.json")
    put(tmp_path / "results", "a.json", benchmark="layers", rows=[{}])
    put(tmp_path / "results", "c.txt")
    records = read_records(tmp_path / "results")
    assert list(records) == ["b.json"]
    assert records["b.json"]["rows"][0]["recipe"]["batch_size"] == 256
    assert records["b.json"]["rows"][0]["recipe"]["augment"] is False
    assert read_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("change", [{"rows": [{}]}, {"rows": [row(recipe=None)]}, {"rows": 1}])
def test_a_damaged_record_is_named(tmp_path, change):
    put(tmp_path / "results", "a.json", **change)
    with pytest.raises(UserError, match=r"^a\.json is not a record"):
        read_records(tmp_path / "results")


def test_runs_on_a_gpu_name_it(finished):
    gpu = {"name": "NVIDIA H200", "route": "cuda", "multiprocessors": 132}
    record = collect([finished("a", 99.0, 99.1, 99.25, environment={"gpu": gpu})])
    assert record["environment"]["gpu"] == "NVIDIA H200 (route cuda)"
    assert "NVIDIA H200 (route cuda)" in machine(record["environment"])

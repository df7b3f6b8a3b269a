"""Test which measurement stands beside which row of the paper, and every character of the tables."""

import dataclasses

import pytest

from torchadder.cli import console
from torchadder.lab.reproduce import EXPERIMENTS, Experiment, Row
from torchadder.lab.reproduce.runs import effective
from torchadder.lab.reproduce.table import (
    accuracies,
    document,
    fill,
    others,
    shortened,
    tables,
    top5s,
)

COST = {"minutes": 3.04, "seconds_per_epoch": 91.25, "images_per_second": 4532.6, "peak_rss_mib": 1684.1}


def row(op, mean, std=None, n=1, recipe=None, **changes):
    settings = {**vars(recipe or EXPERIMENTS["tiny"].rows[0].recipe_for()), "op": op, **changes}
    numbers = {
        "mean": mean,
        "std": std,
        "top5": None,
        "n": n,
        "seeds": list(range(n)),
        "epochs": settings["epochs"],
        "threads": [1],
    }
    return {**numbers, **COST, "recipe": effective(settings)}


def record(*rows, date="2020-06-14", differing=()):
    environment = {"processor": "Abacus 3000", "torch": "2.13.0", "kernels": "avx2"}
    return {"date": date, "environment": environment, "differing": list(differing), "rows": list(rows)}


def test_a_row_is_filled_with_what_was_measured_by_its_recipe(table):
    cnn, adder = fill(table, {"a.json": record(row("conv", 90.126, 0.5, n=3), row("binary", 10.0))})
    assert (cnn.measured["mean"], cnn.gap, cnn.file) == (90.126, 0.13, "a.json")
    assert (adder.measured, adder.gap, adder.file) == (None, None, None)


@pytest.mark.parametrize(
    ("mean", "gap", "printed"),
    [
        (90.0, 0.0, "+0.00"),
        (89.996, 0.0, "+0.00"),
        (91.234, 1.23, "+1.23"),
        (89.985, -0.02, "-0.02"),
        (0, -90, "-90.00"),
    ],
)
def test_the_gap_is_that_of_the_printed_numbers(table, mean, gap, printed):
    lines = fill(table, {"a.json": record(row("conv", mean))})
    assert lines[0].gap == gap
    cells = accuracies(table, lines)[1]
    assert cells[3] == printed
    assert f"{float(cells[1]) - float(cells[2]) + 0.0:+.2f}" == printed


@pytest.mark.parametrize(
    "change", [{"batch_size": 8}, {"lr": 0.2}, {"ema": 0.5}, {"dataset": "other"}, {"epochs": 1}, {"partial": True}]
)
def test_a_run_of_another_recipe_is_never_taken_for_a_row(table, change):
    assert [line.measured for line in fill(table, {"a.json": record(row("conv", 99.0, **change))})] == [None, None]


@pytest.mark.parametrize("change", [{"eta": 7.0}, {"lr_scheme": "plain"}, {"weight_grad": "sign"}, {"seed": 5}])
def test_what_has_no_effect_on_a_cnn_makes_no_other_recipe(table, change):
    assert fill(table, {"a.json": record(row("conv", 99.0, **change))})[0].measured["mean"] == 99.0


def test_of_several_records_the_one_with_the_most_seeds_counts_then_the_latest(table):
    records = {
        "a.json": record(row("conv", 1.0, n=2), date="2020-01-01"),
        "b.json": record(row("conv", 2.0, n=2), date="2020-01-03"),
        "c.json": record(row("conv", 3.0, n=2), date="2020-01-02"),
        "d.json": record(row("conv", 4.0, n=1), date="2020-01-04"),
    }
    assert fill(table, records)[0].file == "b.json"


def test_shortened_runs_are_never_mixed_with_full_ones(table):
    records = {"a.json": record(row("conv", 80.0, epochs=1), row("adder", 95.0), row("conv", 50.0, epochs=9))}
    assert [line.measured and line.measured["mean"] for line in fill(table, records)] == [None, 95.0]
    assert [line.measured and line.measured["mean"] for line in fill(table, records, epochs=1)] == [80.0, None]
    assert shortened(table, records) == [1]  # 9 epochs are more than the recipe's


def test_lines_as_plain_values(table):
    line = fill(table, {"a.json": record(row("conv", 90.126, 0.5, n=3))})[0]
    assert line.to_dict() == {
        **{"label": "CNN", "recipe": "lenet5bn-tiny", "changes": {"op": "conv", "epochs": 2}},
        **{
            "top5": None,
            "paper": 90.0,
            "paper_top5": None,
            "gap": 0.13,
            "mean": 90.126,
            "std": 0.5,
            "n": 3,
            "seeds": [0, 1, 2],
            "epochs": 2,
        },
        **COST,
        "threads": [1],
    }
    missing = fill(table, {})[0].to_dict()
    assert missing.keys() == line.to_dict().keys()
    assert (missing["paper"], missing["gap"], missing["mean"], missing["threads"]) == (90.0, None, None, None)


@pytest.mark.parametrize("name", [*EXPERIMENTS])
def test_every_table_fits_a_terminal_of_80_columns(name, capsys):
    experiment = EXPERIMENTS[name]
    recipes = [row.recipe_for(epochs=20) for row in experiment.rows]
    rows = [row(recipe.op, 99.999, 10.0, 10, recipe) for recipe in recipes]
    for measured in rows:
        measured.update(minutes=12345.6, seconds_per_epoch=1234.5, images_per_second=12345.6, peak_rss_mib=12345.0)
    lines = fill(experiment, {"a.json": record(*rows)}, epochs=20)
    for header, *cells in tables(experiment, lines):
        console.table(header, cells)
    text = capsys.readouterr().out
    assert "not run here" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_top5_where_the_paper_has_it(table):
    assert top5s(fill(table, {})) == [["network", "top-5, %", "paper, %"]]
    imagenet = EXPERIMENTS["imagenet"]
    measured = {**row("adder", 60.0, None, 1, imagenet.rows[1].recipe_for()), "top5": 81.257}
    cells = top5s(fill(imagenet, {"a.json": record(measured)}))
    assert cells[1:3] == [["ResNet-18 CNN", "not run here", "89.10"], ["ResNet-18 AdderNet", "81.26", "87.60"]]
    assert cells[2] in tables(imagenet, fill(imagenet, {"a.json": record(measured)}))[1]


DOCUMENT = """\
`torchadder reproduce tiny`. Paper: somewhere. A note.

| network | accuracy, % | paper, % | gap | seeds | epochs |
| :-- | --: | --: | --: | --: | --: |
| CNN | 90.13 ± 0.50 | 90.00 | +0.13 | 3 | 2 |
| AdderNet | not run here | 95.50 | – | – | – |

| network | minutes | s an epoch | images/s | peak MiB | threads |
| :-- | --: | --: | --: | --: | --: |
| CNN | 3.0 | 91.2 | 4,533 | 1,684 | 1 |

- `a.json`: Abacus 3000; torch 2.13.0, avx2 kernels; 2020-06-14

`torchadder reproduce tiny --epochs 1`. **Shortened to 1 of 2 epochs, no reproduction.**

| network | accuracy, % | paper, % | gap | seeds | epochs |
| :-- | --: | --: | --: | --: | --: |
| CNN | not run here | 90.00 | – | – | – |
| AdderNet | 60.00 | 95.50 | -35.50 | 1 | 1 of 2 |

| network | minutes | s an epoch | images/s | peak MiB | threads |
| :-- | --: | --: | --: | --: | --: |
| AdderNet | 3.0 | 91.2 | 4,533 | 1,684 | 1 |

- `b.json`: Abacus 3000; torch 2.13.0, avx2 kernels; its runs differ in threads, listed run by run; 2020-06-15"""


def test_document(table):
    records = {
        "a.json": record(row("conv", 90.126, 0.5, n=3)),
        "b.json": record(row("adder", 60.0, epochs=1), date="2020-06-15", differing=["threads"]),
        "c.json": record(row("binary", 1.0)),
    }
    assert document(dataclasses.replace(table, note="A note."), records) == DOCUMENT


def test_document_where_nothing_was_run_and_the_paper_has_nothing():
    experiment = Experiment("mine", "Mine", (Row("CNN", "lenet5bn-tiny", {"op": "conv"}),), seeds=1, source=None)
    assert (
        document(experiment, {})
        == """\
`torchadder reproduce mine`.

| network | accuracy, % | paper, % | gap | seeds | epochs |
| :-- | --: | --: | --: | --: | --: |
| CNN | not run here | – | – | – | – |"""
    )


def test_others_are_the_runs_of_no_table(table):
    recipe = EXPERIMENTS["mnist"].rows[1].recipe_for()
    cost = "3.0 | 91.2 | 4,533 | 1,684 | 1 |"
    rows = [
        row("conv", 90.0),  # of the table
        row("conv", 80.0, epochs=1),  # of the table, shortened
        row("adder", 99.42, 0.08, 3, recipe, recenter=True, precision="bf16"),
        row("conv", 50.0, recipe=recipe, dataset="imagefolder:digits", epochs=7),
        row("binary", 40.0, name="gone"),
    ]
    assert (
        others({"a.json": record(*rows)})
        == f"""\
| recipe | file | accuracy, % | seeds | epochs | minutes | s an epoch | images/s | peak MiB | threads |
| :-- | :-- | --: | --: | --: | --: | --: | --: | --: | --: |
| lenet5bn-mnist, adder, recenter True, precision bf16 | `a.json` | 99.42 ± 0.08 | 3 | 50 | {cost}
| lenet5bn-mnist, conv, dataset imagefolder:digits | `a.json` | 50.00 | 1 | 7 | {cost}
| gone, binary | `a.json` | 40.00 | 1 | 2 | {cost}"""
    )
    assert others({"a.json": record(rows[0])}) == others({}) == ""

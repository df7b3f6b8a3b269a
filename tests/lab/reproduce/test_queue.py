"""Test the queue: every row with every seed once, after interruptions too, and all failures."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.reproduce.conftest import Log

from torchadder.data import registry as datasets
from torchadder.errors import UserError
from torchadder.lab.reproduce import Experiment, Queue, Row
from torchadder.lab.reproduce.queue import run_name
from torchadder.train import RECIPES, Run, train

CNN, ADDER = "lenet5bn-tiny-conv-s", "lenet5bn-tiny-adder-full-alr-eta0.2-s"


def read(path):
    return json.loads(Path(path).read_text())


def accuracies(record):
    return {(row["op"], run["seed"]): run["accuracy"] for row in record["rows"] for run in row["runs"]}


def reasons(results):
    return [(result.job.row.label, result.job.seed, result.reason) for result in results if result.reason]


@pytest.fixture
def one(table):
    """Return a queue of one seed and one epoch."""
    return Queue(table, seeds=1, epochs=1)


def test_every_row_runs_with_every_seed_and_first_seeds_come_first(table):
    log = Log()
    results = Queue(table).run(report=log)
    assert log.begun == [("CNN", 0), ("AdderNet", 0), ("CNN", 1), ("AdderNet", 1)]
    assert log.epochs == [(*run, epoch) for run in log.begun for epoch in (1, 2)]
    assert log.ended == results
    assert [result.earlier for result in results] == [False] * 4
    assert {path.name for path in Path("runs/reproduce").iterdir()} == {
        f"{n}{seed}" for n in (CNN, ADDER) for seed in "01"
    }
    record = read("results/reproduce-tiny.json")
    assert (record["table"], record["shortened"]) == ("tiny", None)
    assert [(row["op"], row["seeds"], row["epochs"]) for row in record["rows"]] == [
        *[("conv", [0, 1], 2), ("adder", [0, 1], 2)]
    ]
    told = {(result.outcome.op, result.job.seed): result.outcome.accuracy for result in results}
    assert accuracies(record) == pytest.approx(told)


@pytest.mark.parametrize("interrupt", [(1, 1), (2, 2), (3, 1)])
def test_interrupted_anywhere_it_continues_and_ends_with_the_same_numbers(table, interrupt):
    whole = Queue(table, out=Path("whole"), results=Path("whole"))
    whole.run()
    log = Log(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Queue(table).run(report=log)
    finished = Path("results/reproduce-tiny.json")  # of the runs before the interrupted one
    done = list(accuracies(read(finished))) if finished.exists() else []
    assert done == sorted([("conv", 0), ("adder", 0)][: interrupt[0] - 1], reverse=True)
    again = Log()
    Queue(table).run(report=again)
    assert Counter(log.epochs + again.epochs) == {
        (label, seed, epoch): 1 for label in ("CNN", "AdderNet") for seed in (0, 1) for epoch in (1, 2)
    }
    assert accuracies(read(finished)) == accuracies(read(whole.record_path))


def test_killed_in_the_middle_of_writing(table, one):
    """Continue after a kill -9: an incomplete line after the last state, temporary files, a folder without recipe."""
    with pytest.raises(KeyboardInterrupt):
        Queue(table, seeds=1).run(report=Log((1, 2)))
    folder = Path("runs/reproduce") / f"{CNN}0"
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"epoch": 2, "test_acc')
    (folder / ".torchadder-0.tmp").write_bytes(b"torn")
    (Path("runs/reproduce") / f"{ADDER}0").mkdir()
    Path("results/.torchadder-0.tmp").write_text("{")
    log = Log()
    assert reasons(Queue(table, seeds=1).run(report=log)) == []
    assert log.epochs == [("CNN", 0, 2), ("AdderNet", 0, 1), ("AdderNet", 0, 2)]


def test_tables_share_runs(table):
    other = Experiment("other", "Other", (table.rows[1], Row("BNN", "lenet5bn-tiny", {"op": "binary"})), seeds=1)
    Queue(table, seeds=1).run()
    log = Log()
    results = Queue(other).run(report=log)
    assert [(result.job.row.label, result.earlier) for result in results] == [("AdderNet", True), ("BNN", False)]
    assert {epoch[0] for epoch in log.epochs} == {"BNN"}
    ours, others = read("results/reproduce-tiny.json"), read("results/reproduce-other.json")
    assert [row["op"] for row in others["rows"]] == ["adder", "binary"]
    assert accuracies(ours)["adder", 0] == accuracies(others)["adder", 0]


def test_the_record_keeps_other_seeds_and_rows_than_those_asked_for(table):
    Queue(table, epochs=1).run()
    queue = Queue(table, epochs=1, seeds=1, only="cnn")
    queue.run()
    assert [row["seeds"] for row in read(queue.record_path)["rows"]] == [[0, 1], [0, 1]]


def test_shortened_runs_are_stored_apart_and_marked(table, one):
    one.run()
    path = Path("runs/reproduce/epochs-1/reproduce-tiny-epochs-1.json")
    assert one.record_path == path
    assert read(path)["shortened"] == one.shortened == {"epochs": 1, "of": 2}
    assert [row["epochs"] for row in read(path)["rows"]] == [1, 1]
    assert not Path("results").exists()
    full = Queue(table, seeds=1, epochs=2)
    assert (full.shortened, full.record_path) == (None, Path("results/reproduce-tiny.json"))
    log = Log()
    full.run(report=log)
    assert len(log.epochs) == 4


def test_shortened_runs_in_a_folder_of_their_own(table):
    queue = Queue(table, seeds=1, epochs=1, out=Path("a"), results=Path("b"), only="cnn")
    queue.run()
    assert read("b/reproduce-tiny-epochs-1.json")["rows"][0]["op"] == "conv"
    assert (Path("a/epochs-1") / f"{CNN}0" / "last.pt").exists()


def test_a_run_of_another_recipe_is_never_taken_for_the_row(one):
    recipe = replace(RECIPES["lenet5bn-tiny"], op="conv", epochs=1, batch_size=8)
    train(Run.open(one.folder / f"{CNN}0", recipe))
    (reason,) = reasons(one.run())
    assert reason[:2] == ("CNN", 0)
    assert "with another recipe: batch_size (run: 8, now: 16)" in reason[2]
    assert [row["op"] for row in read(one.record_path)["rows"]] == ["adder"]


def test_a_copy_of_a_run_counts_once(table, one):
    one.run()
    for name in (f"{CNN}0-copy", f"{CNN}1"):
        shutil.copytree(one.folder / f"{CNN}0", one.folder / name)
    assert [row["seeds"] for row in one.record()["rows"]] == [[0], [0]]


def damage_state(folder):
    (folder / "last.pt").write_bytes(b"junk")


def damage_recipe(folder):
    (folder / "recipe.json").write_text("{")


def damage_metrics(folder):
    (folder / "metrics.jsonl").write_text("")


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("damage", [damage_state, damage_recipe, damage_metrics, replace_by_file])
def test_a_damaged_run_is_named_and_the_others_continue(table, one, damage):
    one.run()
    damage(one.folder / f"{CNN}0")
    (reason,) = reasons(Queue(table, epochs=1).run())
    assert reason[:2] == ("CNN", 0)
    assert f"runs/reproduce/epochs-1/{CNN}0" in reason[2]
    assert list(accuracies(read(one.record_path))) == [("conv", 1), ("adder", 0), ("adder", 1)]


def test_a_run_that_diverges_is_reported_and_the_others_continue(table):
    wild = Row("wild", "lenet5bn-tiny", {"op": "conv", "lr": 1e30, "batch_size": 10, "epochs": 2})
    results = Queue(replace(table, rows=(wild, table.rows[1])), seeds=1, epochs=1).run()
    assert [(result.job.row.label, result.outcome is None) for result in results] == [
        *[("wild", True), ("AdderNet", False)]
    ]
    assert re.match("NaN or infinite numbers in epoch 1", results[0].reason)
    assert not results[0].no_data


@pytest.fixture
def half_missing(table, monkeypatch):
    """Return the table with two more rows without data, and a list of the attempts to load them."""
    tried = []

    def load(data_dir):
        tried.append(data_dir)
        raise UserError("no such data:\nput them there")

    monkeypatch.setitem(datasets._DATASETS, "missing", load)
    rows = [
        Row(label, "lenet5bn-tiny", {"op": "conv", "dataset": "missing", "epochs": 2}) for label in ("one", "other")
    ]
    return replace(table, rows=(rows[0], table.rows[0], rows[1])), tried


def test_rows_without_data_are_skipped_with_the_reason(half_missing):
    table, tried = half_missing
    results = Queue(table, seeds=2, epochs=1).run(Path("data"))
    assert reasons(results) == [(label, 0, "no such data: put them there") for label in ("one", "other")]
    assert [(result.job.position, result.no_data) for result in results] == [
        (1, True),
        (2, False),
        (3, True),
        (5, False),
    ]
    assert tried == [Path("data")]  # once: a download that fails takes long


def test_finished_runs_need_no_data(table, one, monkeypatch):
    one.run()
    monkeypatch.delitem(datasets._DATASETS, "tiny")
    results = Queue(table, epochs=1).run()
    assert [(result.job.seed, result.earlier) for result in results] == [(0, True), (0, True), (1, False), (1, False)]
    assert {reason[2] for reason in reasons(results)} >= {results[2].reason}
    assert "dataset=tiny is unknown" in results[2].reason


def blocked_by_file(path):
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.write_text("")


def blocked_by_folder(path):
    path.mkdir(parents=True)


@pytest.mark.parametrize(("block", "reason"), [(blocked_by_file, "is no folder"), (blocked_by_folder, "is a folder")])
def test_a_record_that_cannot_be_written_is_refused_before_the_first_run(table, block, reason):
    queue = Queue(table, results=Path("there/results"))
    block(queue.record_path)
    log = Log()
    with pytest.raises(UserError) as refusal:
        queue.run(report=log)
    assert log.begun == []
    assert str(refusal.value).startswith(f"results={queue.record_path}: ")
    assert reason in str(refusal.value)


def test_a_disk_that_is_full_when_the_record_is_written(table, fill_disk):
    queue = Queue(table, seeds=1, epochs=1)
    fill_disk(queue.record_path.name)
    with pytest.raises(UserError, match=r"^cannot write .*reproduce-tiny-epochs-1\.json: No space left on device"):
        queue.run()
    log = Log()
    queue.run(report=log)
    assert log.epochs == [("AdderNet", 0, 1)]


def test_too_few_epochs_for_the_recipe(table):
    rows = (Row("warm", "lenet5bn-tiny", {"warmup_epochs": 1}),)
    with pytest.raises(UserError, match="warmup_epochs=1 is out of range: expected below epochs=1"):
        Queue(replace(table, rows=rows), epochs=1)


@pytest.mark.parametrize(
    ("only", "labels"),
    [("", ["CNN", "AdderNet"]), ("cnn", ["CNN"]), ("adder", ["AdderNet"]), ("lenet5bn", ["CNN", "AdderNet"])],
)
def test_only(table, only, labels):
    assert [job.row.label for job in Queue(table, seeds=1, only=only).jobs] == labels


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"op": "conv"}, "lenet5bn-mnist-conv-s0"),
        ({"op": "binary", "seed": 12}, "lenet5bn-mnist-binary-s12"),
        ({}, "lenet5bn-mnist-adder-full-alr-eta0.1-s0"),
        ({"lr_scheme": "ilr", "weight_grad": "sign", "input_grad": "sign"}, "lenet5bn-mnist-adder-sign-ilr-s0"),
        (
            {"op": "conv", "dataset": "imagefolder:a-b,normalize=cifar"},
            "lenet5bn-imagefolder-a-b-normalize-cifar-conv-s0",
        ),
    ],
)
def test_run_name(changes, name):
    assert run_name(replace(RECIPES["lenet5bn-mnist"], **changes)) == name

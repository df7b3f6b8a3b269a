"""torchadder bench: its files, its JSON, its tables, its refusals."""

import json

import pytest

from torchadder.bench import family, layers, training
from torchadder.cli import main

LAYERS = ["bench", "layers", "--model", "lenet5bn", "--batch", "1", "--threads", "1", "--repetitions", "1"]
TRAIN = ["bench", "train", "--model", "lenet5bn", "--batch", "2", "--threads", "1", "--repetitions", "1"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: {"step": 1.0, "total": 2.0})


@pytest.fixture
def no_time(monkeypatch):
    """Nothing is run: where nothing may be measured, this would end the test."""

    def measured(*arguments):
        raise AssertionError("measured before the arguments were checked")

    monkeypatch.setattr(family, "interleaved", measured)
    monkeypatch.setattr(layers, "interleaved", measured)
    monkeypatch.setattr(training, "interleaved", measured)


def test_layers_json_is_one_object_and_is_the_file(capsys, tmp_path):
    out = tmp_path / "folder" / "a.json"
    assert main([*LAYERS, "--passes", "forward", "--json", "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert printed.count("\n") == 1
    record = json.loads(printed)
    assert json.loads(out.read_text()) == record
    assert (record["benchmark"], record["n"]) == ("layers", 1)
    assert [row["layer"] for row in record["rows"]] == ["1->6 5x5 @32", "6->16 5x5 @14", "16->120 5x5 @5"]
    assert [row["layer"] for row in record["formulas"]] == ["1->6 5x5 @32"]
    assert str(tmp_path) not in out.read_text()


def test_train_writes_to_results_and_prints_a_table(capsys, tmp_path):
    assert main(TRAIN) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "lenet5bn" in out
    assert out.endswith("written to results/bench-train.json\n")
    (row,) = json.loads((tmp_path / "results" / "bench-train.json").read_text())["rows"]
    assert (row["model"], row["batch"], row["threads"]) == ("lenet5bn", 2, 1)


def test_layers_prints_both_tables(capsys, tmp_path):
    assert main([*LAYERS, "--passes", "grad_weight,forward,grad_weight"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("1->6 5x5 @32") == 3  # each pass once, and the formulas
    assert "cdist" in out
    assert (tmp_path / "results" / "bench-layers.json").exists()


def test_family_prints_every_layer_and_pass(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(family, "CASES", family.CASES[:2])
    assert main(["bench", "family", "--threads", "1", "--repetitions", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("tiny") == 4
    rows = json.loads((tmp_path / "results" / "bench-family.json").read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "step", "forward", "step"]


REFUSED = [  # arguments -> the words on stderr
    ([*LAYERS, "--model", "lenet6"], "--model lenet6: choose of lenet5bn"),
    ([*LAYERS, "--model", "lenet5bn,"], "--model : choose of lenet5bn"),
    ([*LAYERS, "--batch", "0"], "--batch 0: expected positive whole numbers, e.g. 1,128"),
    ([*LAYERS, "--batch", "1,-2"], "--batch 1,-2: expected positive"),
    ([*LAYERS, "--batch", "1.5"], "--batch 1.5: expected positive"),
    ([*LAYERS, "--batch", ""], "--batch : expected positive"),
    ([*LAYERS, "--threads", "0"], "--threads 0: expected positive"),
    ([*LAYERS, "--threads", "all"], "--threads all: expected positive"),
    ([*LAYERS, "--passes", "backward"], "--passes backward: choose of forward, grad_input, grad_weight"),
    ([*LAYERS, "--repetitions", "0"], "--repetitions"),
    ([*LAYERS, "--out", "folder"], "cannot write folder (is a folder): choose another place with --out"),
    (
        [*LAYERS, "--out", "file/a.json"],
        "cannot write file/a.json (file is no folder): choose another place with --out",
    ),
    ([*LAYERS, "--out", "file/a/b.json"], "cannot write file/a/b.json (file/a is no folder)"),
    ([*TRAIN, "--model", "lenet6"], "--model lenet6: choose of lenet5bn"),
    ([*TRAIN, "--batch", "1"], "--batch"),
    ([*TRAIN, "--threads", "0"], "--threads 0: expected positive"),
    ([*TRAIN, "--out", "folder"], "cannot write folder (is a folder)"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused_before_anything_is_measured(no_time, tmp_path, capsys, arguments, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_disk_that_fills_up_meanwhile_is_one_line(capsys, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchadder.bench.record.atomic.write_bytes", full)
    assert main(TRAIN) == 2
    out, err = capsys.readouterr()
    assert out == ""
    words = "cannot write results/bench-train.json (No space left on device): choose another place with --out"
    assert err == f"error: {words}\n"

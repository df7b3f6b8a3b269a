"""Test benchmarks/collect.py: its output and its refusals; tests/lab/reproduce tests the numbers."""

import json

import pytest


def test_rows_are_named_and_the_file_is_written(collect, finished, tmp_path, capsys):
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
    assert json.loads(output.read_text())["date"] == "2020-06-14"


def test_runs_that_differ_are_noted(collect, finished, tmp_path, capsys):
    runs = [finished("a", 99.0), finished("b", 99.0, seed=1, environment={"processor": "Slide rule", "threads": 2})]
    assert collect.main([*map(str, runs), "-o", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().err == "note: the runs differ in processor, threads: listed run by run\n"


@pytest.mark.parametrize(
    ("epochs", "folder", "words"),
    [(3, False, "a is not finished (1 of 3 epochs): continue it with resume=True"), (1, True, "")],
    ids=["a run that is not finished", "an output that cannot be written"],
)
def test_refused_in_one_line(collect, finished, tmp_path, capsys, epochs, folder, words):
    output = tmp_path if folder else tmp_path / "out.json"
    assert collect.main([str(finished("a", 99.0, epochs=epochs)), "-o", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out.json").exists()

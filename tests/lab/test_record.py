"""Test that a record is complete, can be read again, and has no path of the machine that wrote it."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from torchadder.errors import UserError
from torchadder.lab import record

RESULTS = Path(__file__).parents[2] / "results"
PATH = re.compile(r"""(?:^|[\s="'])(?:/|~/)\w""", re.MULTILINE)

COMMANDS = [  # as typed -> as published
    ("torchadder bench layers", "torchadder bench layers"),
    ("torchadder bench layers --out /home/someone/b.json --json", "torchadder bench layers --json"),
    ("torchadder bench layers --out=/home/someone/b.json --batch 1", "torchadder bench layers --batch 1"),
    ("torchadder train m --data '/my data' --out ../run --seed 1", "torchadder train m --seed 1"),
    ("torchadder train m --data=~/mnist --seed 1", "torchadder train m --seed 1"),
    ("torchadder train m --out runs/a --seed 1", "torchadder train m --out runs/a --seed 1"),
    ("torchadder train m --out=runs/a", "torchadder train m --out=runs/a"),
    ("torchadder eval /home/someone/runs/a", "torchadder eval a"),
    ("torchadder x --log=/home/someone/log.txt --lr 0.1", "torchadder x --log=log.txt --lr 0.1"),
    ("torchadder x --scale -1 16->32", "torchadder x --scale -1 '16->32'"),
]


@pytest.mark.parametrize(("typed", "published"), COMMANDS)
def test_commands_lose_their_paths(typed, published):
    assert record.portable_command(typed) == shlex.join(shlex.split(published))


def test_make_write_and_read(tmp_path, monkeypatch):
    argv = ["/opt/somewhere/bin/torchadder", "bench", "layers", "--out", str(tmp_path / "a.json"), "--batch", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("TORCHADDER_ISA", "avx2")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    made = record.make("layers", 7, [{"layer": "16->32 3x3/2 @32", "ratio": 1.25}], formulas=[])
    written = record.write(tmp_path / "new folder" / "a.json", made)
    text = (tmp_path / "new folder" / "a.json").read_text()
    assert json.loads(text) == record.read(tmp_path / "new folder" / "a.json") == written == made
    assert made["benchmark"] == "layers"
    assert made["n"] == 7
    assert made["formulas"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    environment = made["environment"]
    assert environment["command"] == "torchadder bench layers --batch 1"
    assert environment["limits"] == {"TORCHADDER_ISA": "avx2", "NVIDIA_TF32_OVERRIDE": "0"}
    assert environment["cores"] == os.cpu_count()
    assert {"processor", "torch", "torchadder", "python", "threads", "kernels"} <= environment.keys()
    assert str(tmp_path) not in text
    assert "/opt/somewhere" not in text
    assert not any(PATH.search(value) for value in strings(made))


def test_numbers_are_rounded_and_become_null_if_not_finite(tmp_path):
    rows = {"rows": [{"a": 1.23456789e-3, "b": (0.1, float("nan")), "c": float("inf"), "d": 3, "e": None}]}
    written = record.write(tmp_path / "a.json", rows)
    assert written == {"rows": [{"a": 0.0012346, "b": [0.1, None], "c": None, "d": 3, "e": None}]}
    assert json.loads((tmp_path / "a.json").read_text()) == written


def test_an_old_file_survives_a_record_that_cannot_be_written(tmp_path):
    record.write(tmp_path / "a.json", {"rows": []})
    with pytest.raises(TypeError):
        record.write(tmp_path / "a.json", {"rows": [object()]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": []}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_results_are_records_without_a_path_of_a_machine():
    assert RESULTS.is_dir()
    for path in RESULTS.glob("*.json"):
        found = [value for value in strings(record.read(path)) if PATH.search(value)]
        assert not found, path.name


@pytest.mark.parametrize("content", ["{", "[]", "1", '"runs"', "\xff"])
def test_a_file_without_a_record_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"^a\.json is not a record \("):
        record.read(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["/usr/bin/x", "a --out=/home/x", "train --data /x", "~/mnist"])
def test_a_path_would_be_noticed(text):
    assert PATH.search(text)


def strings(value):
    """Return every string in a value of JSON."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []

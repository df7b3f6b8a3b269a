"""Test torchadder summary: its table, its JSON, its refusals."""

import json

import pytest

from torchadder.cli import main
from torchadder.counts import summary
from torchadder.models import create_model

REFUSED = [  # arguments -> the words on stderr
    (["lenet6"], "lenet6 is unknown: expected one of"),
    (["lenet5bn", "--op", "xor"], "--op xor is unknown: expected one of adder, conv, binary"),
    (["lenet5bn", "--input-size", "32"], "--input-size 32: expected CxHxW"),
    (["lenet5bn", "--input-size", "1x32x-2"], "--input-size 1x32x-2: every size must be at least 1"),
    (["lenet5bn", "--input-size", "1x28x28"], "does not run on an input of 1x28x28"),
]


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_plain_text_without_a_terminal(op, capsys):
    assert main(["summary", "lenet5bn", "--op", op]) == 0
    assert capsys.readouterr().out == f"{summary(create_model('lenet5bn', op=op))}\n"


def test_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["summary", "resnet20"]) == 0
    out = capsys.readouterr().out
    for words in ("resnet20 · adder · input 3x32x32", "layer2.0.downsample.0", "81,183,360", "82.34M", "┃"):
        assert words in out


def test_narrow_terminal_cuts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["summary", "resnet20"]) == 0
    assert capsys.readouterr().out == f"{summary(create_model('resnet20'))}\n"


def test_json_is_one_object_and_nothing_else(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(summary(create_model("resnet20", op="conv")).to_dict()))
    assert found["total"]["mul"] == 40_813_184


def test_another_input_size(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--input-size", "1x28X28", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["input_size"] == [1, 28, 28]
    assert counts["layers"][0]["mul"] == 28 * 28 * 16 * 9
    assert counts["paper"] is None


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_mistakes_are_one_line(arguments, words, refused):
    assert words in refused(["summary", *arguments])

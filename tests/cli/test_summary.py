"""torchadder summary: its table, its JSON, its refusals."""

import json

import pytest

from torchadder.analysis import summary
from torchadder.cli import main
from torchadder.models import create_model
from torchadder.models.registry import OPS

REFUSED = [  # arguments -> the words on stderr
    (["lenet6"], "unknown model 'lenet6'; known: lenet5bn"),
    (["lenet5bn", "--op", "xor"], "unknown op 'xor'; known: adder, conv, binary"),
    (["lenet5bn", "--input-size", "32"], "--input-size 32: expected CxHxW"),
    (["lenet5bn", "--input-size", "1x32x-2"], "--input-size 1x32x-2: every size must be at least 1"),
    (["lenet5bn", "--input-size", "1x28x28"], "does not run on an input of 1x28x28"),
]


@pytest.mark.parametrize("op", OPS)
def test_plain_text_where_no_terminal_is(op, capsys):
    assert main(["summary", "lenet5bn", "--op", op]) == 0
    assert capsys.readouterr().out == f"{summary(create_model('lenet5bn', op=op))}\n"


def test_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["summary", "resnet20"]) == 0
    printed = capsys.readouterr().out
    for words in ("resnet20 · adder · input 3x32x32", "layer2.0.downsample.0", "81,183,360", "82.34M", "┃"):
        assert words in printed


def test_a_terminal_too_narrow_for_the_table_cuts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["summary", "resnet20"]) == 0
    assert capsys.readouterr().out == f"{summary(create_model('resnet20'))}\n"


def test_json_is_one_object_and_nothing_else(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == json.loads(json.dumps(summary(create_model("resnet20", op="conv")).to_dict()))
    assert counts["total"]["mul"] == 40_813_184


def test_another_input_size(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--input-size", "1x28X28", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["input_size"] == [1, 28, 28]
    assert counts["layers"][0]["mul"] == 28 * 28 * 16 * 9
    assert counts["paper"] is None


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused(arguments, words, capsys):
    assert main(["summary", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1

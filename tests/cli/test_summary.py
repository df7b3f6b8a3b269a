"""torchadder summary: its tables, its JSON, its refusals."""

import json
import re

import pytest

from torchadder.cli import main
from torchadder.counts import summary
from torchadder.lab.bench import one_image
from torchadder.models import create_model
from torchadder.models.registry import OPS

REFUSED = [  # arguments -> the words on stderr
    (["lenet6"], "unknown model 'lenet6'; known: lenet5bn"),
    (["lenet5bn", "--op", "xor"], "xor is unknown: expected one of adder, conv, binary"),
    (["lenet5bn", "--input-size", "32"], "--input-size 32: expected CxHxW"),
    (["lenet5bn", "--input-size", "1x32x-2"], "--input-size 1x32x-2: every size must be at least 1"),
    (["lenet5bn", "--input-size", "1x28x28"], "does not run on an input of 1x28x28"),
]


def printed(op="adder", name="lenet5bn"):
    return f"{summary(create_model(name, op=op))}\n"


@pytest.mark.parametrize("op", OPS)
def test_plain_text_where_no_terminal_is(op, capsys):
    assert main(["summary", "lenet5bn", "--op", op]) == 0
    assert capsys.readouterr().out == printed(op)


def test_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["summary", "resnet20"]) == 0
    out = capsys.readouterr().out
    for words in ("resnet20 · adder · input 3x32x32", "layer2.0.downsample.0", "81,183,360", "82.34M", "┃"):
        assert words in out


def test_a_terminal_too_narrow_for_the_table_cuts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["summary", "resnet20"]) == 0
    assert capsys.readouterr().out == printed(name="resnet20")


def test_json_is_one_object_and_nothing_else(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = summary(create_model("resnet20", op="conv"))
    assert found == json.loads(json.dumps(counts.to_dict()))
    assert found["total"]["mul"] == 40_813_184


@pytest.mark.parametrize("reason", [None, "cannot quantise relu"])
def test_measured_here(capsys, monkeypatch, reason):
    engine = None if reason else 0.015
    rows = [
        {"runtime": one_image.FLOAT, "milliseconds": 0.25, "n": 11, "reason": None},
        {"runtime": one_image.ENGINE, "milliseconds": engine, "n": 11, "reason": reason},
    ]
    asked = []
    monkeypatch.setattr(one_image, "measure", lambda model, size: asked.append(size) or rows)
    assert main(["summary", "resnet20", "--input-size", "3x16x16", "--measure"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()[-3:]
    assert re.fullmatch(r"measured: one image on one thread, .+, kernels \w+, median of 11", heading)
    assert lines == ["float32, torch  0.25 ms", f"8 bits, engine  {'-: ' + reason if reason else '0.015 ms'}"]
    assert main(["summary", "resnet20", "--measure", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["rows"] == rows
    assert measured["environment"]["threads"] == 1
    assert asked == [(3, 16, 16), (3, 32, 32)]


def test_another_input_size(capsys):
    assert main(["summary", "resnet20", "--op", "conv", "--input-size", "1x28X28", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["input_size"] == [1, 28, 28]
    assert counts["layers"][0]["mul"] == 28 * 28 * 16 * 9
    assert counts["paper"] is None


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused(arguments, words, capsys):
    assert main(["summary", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1

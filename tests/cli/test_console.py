"""Test tables, the bar, and the progress of training that uses it."""

import io

import pytest

from torchadder.cli import console
from torchadder.cli.train import TrainingProgress
from torchadder.models import create_model
from torchadder.train import get_recipe

ROW = {"epoch": 2, "train_loss": 0.0314, "test_accuracy": 98.944, "seconds": 3.44, "images_per_second": 1234.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def draw(stream):
    with TrainingProgress(stream) as progress:
        progress.started(get_recipe("lenet5bn-tiny"), create_model("lenet5bn"), 1, 40)
        progress.stepped(2, 20, 0.123)
        progress.epoch_done(ROW)
    return stream.getvalue()


def test_one_line_an_epoch_without_a_terminal(monkeypatch):
    monkeypatch.setattr("torchadder.cli.train.time.perf_counter", iter([100.0, 110.0]).__next__)
    header, continues, line = draw(io.StringIO()).splitlines()
    assert header.startswith("lenet5bn-tiny · adder · ")
    assert continues == "continues after epoch 1"
    assert line == "epoch 2/3  loss 0.031  test 98.94%  3.4 s  1,234 images/s  eta 0:10"


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    drawn = draw(Terminal())
    assert "━" in drawn
    assert "epoch 2/3" in drawn
    assert "loss 0.031  test 98.94%  3.4 s" in drawn


ROWS = [["[b]a", "x", "1"], None, ["total", "", "1,000"]]
PLAIN = """[t] title

name   kind    [n]
[b]a   x         1
total        1,000
a note
"""


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, "[t] title"), ({"FORCE_COLOR": "1", "COLUMNS": "12"}, "[t] title"), ({"FORCE_COLOR": "1"}, "┏")],
    ids=["no terminal", "narrow terminal", "terminal"],
)
def test_table(capsys, monkeypatch, environment, first):
    for name, value in {"COLUMNS": "80", **environment}.items():
        monkeypatch.setenv(name, value)
    console.table(["name", "kind", "[n]"], ROWS, texts=2, title="[t] title", notes=["a note"])
    out = capsys.readouterr().out
    if first == "┏":
        assert all(text in out for text in (first, "[t] title", "[b]a", "[n]", "1,000", "a note"))
        assert out.count("├") + out.count("┡") == 2
    else:
        assert out == PLAIN


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (131, "2:11"), (3731, "1:02:11"), (86400, "24:00:00")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text

"""Progress: a bar on a terminal, lines elsewhere, and the clock of both."""

import io

import pytest
from rich.console import Console

from torchadder.cli import console
from torchadder.models import create_model
from torchadder.train import get_recipe

ROW = {"epoch": 2, "train_loss": 0.0314, "test_accuracy": 98.944, "seconds": 3.44, "images_per_second": 1234.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def draw(progress):
    with progress:
        progress.started(get_recipe("lenet5bn-tiny"), create_model("lenet5bn"), 1, 40)
        progress.stepped(2, 20, 0.123)
        progress.epoch_done(ROW)
    return progress


def test_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(console.time, "perf_counter", iter([100.0, 110.0]).__next__)
    stream = io.StringIO()
    assert type(draw(console.progress(stream))) is console.Lines
    header, continues, line = stream.getvalue().splitlines()
    assert header.startswith("lenet5bn-tiny · adder · ")
    assert continues == "continues after epoch 1"
    assert line == "epoch 2/3  loss 0.031  test 98.94%  3.4 s  1,234 images/s  eta 0:10"


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    assert type(draw(console.progress(stream))) is console.Bar
    drawn = stream.getvalue()
    assert "━" in drawn
    assert "epoch 2/3" in drawn
    assert "loss 0.031  test 98.94%  3.4 s" in drawn
    assert Console(file=stream).is_terminal


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (131, "2:11"), (3731, "1:02:11"), (86400, "24:00:00")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text

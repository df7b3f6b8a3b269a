"""Test the curves for TensorBoard, the calls that are passed on, and the error without the package."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

from torchadder.train import Progress, Run, train
from torchadder.train.progress import TensorBoard


class Writer:
    """Stands in for torch's SummaryWriter."""

    calls: list

    def __init__(self, folder, purge_step):
        self.calls.append((folder, purge_step))

    def add_scalar(self, name, value, step):
        self.calls.append((name, value, step))

    def flush(self):
        self.calls.append("flush")


@pytest.fixture
def calls(monkeypatch):
    Writer.calls = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    return Writer.calls


class Shown(Progress):
    def __init__(self):
        self.seen = []

    def started(self, recipe, model, epochs_done, steps_per_epoch):
        self.seen.append(("started", epochs_done))

    def stepped(self, epoch, step, loss):
        self.seen.append(("stepped", epoch))

    def epoch_done(self, row):
        self.seen.append(("done", row["epoch"]))

    def warned(self, line):
        self.seen.append(("warned", line.partition(" the")[0]))


def test_an_epoch_is_a_point_of_each_curve(tiny_recipe, tmp_path, calls):
    shown, run = Shown(), Run.open(tmp_path / "run", dataclasses.replace(tiny_recipe, epochs=2))
    train(run, progress=TensorBoard(run.folder, shown))
    rows = run.metrics()
    assert calls[0] == (str(tmp_path / "run" / "tensorboard"), 1)
    assert calls[1:8] == [
        ("loss/train", rows[0]["train_loss"], 1),
        ("loss/test", rows[0]["test_loss"], 1),
        ("accuracy/train", rows[0]["train_accuracy"], 1),
        ("accuracy/test", rows[0]["test_accuracy"], 1),
        ("lr", rows[0]["lr"], 1),
        ("images_per_second", rows[0]["images_per_second"], 1),
        "flush",
    ]
    assert len(calls) == 1 + 2 * 7
    first, second = [("stepped", 1), ("done", 1)], [("stepped", 2), ("done", 2), ("warned", "after epoch 2")]
    assert shown.seen == [("started", 0), *first, *second]


def test_a_run_that_continues_replaces_what_came_after_its_state(tiny_recipe, tmp_path, calls):
    board = TensorBoard(tmp_path, Progress())
    board.started(tiny_recipe, None, 4, 10)
    assert calls == [(str(tmp_path / "tensorboard"), 5)]


def test_the_real_one(tiny_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.open(tmp_path / "run", tiny_recipe)
    train(run, progress=TensorBoard(run.folder, Progress()))
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload().Scalars("accuracy/test")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(e.step, e.value) for e in events] == [
        (row["epoch"], pytest.approx(row["test_accuracy"], rel=1e-6)) for row in rows
    ]

"""Provide a table on the tiny data set, and a report that keeps what the queue told."""

import pytest

from torchadder.lab.reproduce import EXPERIMENTS, Experiment, Report, Row, queue


class Log(Report):
    """Keep what the queue told; ``interrupt=(job, epoch)`` raises Ctrl-C in the first step of that epoch and job."""

    def __init__(self, interrupt=None):
        self.interrupt = interrupt
        self.begun, self.ended, self.epochs = [], [], []

    def run_begun(self, job):
        self.begun.append((job.row.label, job.seed))

    def run_ended(self, result):
        self.ended.append(result)

    def stepped(self, epoch, step, loss):
        if (len(self.begun), epoch) == self.interrupt:
            raise KeyboardInterrupt

    def epoch_done(self, row):
        self.epochs.append((*self.begun[-1], row["epoch"]))


@pytest.fixture(autouse=True)
def tiny_world(tiny_recipe, one_thread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queue, "_reset_peak_memory", lambda: None)  # takes longer than the run


@pytest.fixture
def table(monkeypatch):
    """Return a table of two rows with two epochs and two seeds each."""
    rows = (
        Row("CNN", "lenet5bn-tiny", {"op": "conv", "epochs": 2}, 90.0),
        Row("AdderNet", "lenet5bn-tiny", {"op": "adder", "epochs": 2}, 95.5),
    )
    experiment = Experiment("tiny", "Tiny digits", rows, seeds=2, source="somewhere")
    monkeypatch.setitem(EXPERIMENTS, "tiny", experiment)
    return experiment

"""Test the sentences above a page: the result beside the paper's, runs in order of accuracy, doubts and problems."""

import torch

from torchadder.lab.predictions import Predictions
from torchadder.lab.report.content import Content, Headline, IntegerProgram, Paper
from torchadder.lab.report.verdict import verdict
from torchadder.lab.runs import TrainedRun
from torchadder.train import get_recipe


def content(accuracy, title="AdderNet", *, images=0, planned=5, paper=None, programs=(), training=90.0):
    run = TrainedRun("run", get_recipe("lenet5bn-mnist"), [{"epoch": 5, "train_accuracy": training}], {})
    predictions = Predictions(torch.diag(torch.full((10,), images // 10)), []) if images else None
    headline = Headline(accuracy, accuracy, 5, 5, planned, 1.0, 1.0, None)
    found = Content(title, run, {}, {}, headline, paper, None, [], [], predictions)
    found.programs = list(programs)
    return found


def text(*contents):
    return " ".join(verdict(contents))


def test_a_run_beside_the_paper():
    assert text(content(99.0)) == "99.00% of the test images are classified correctly after 5 epochs."
    assert "after 5 epochs of 9." in text(content(99.0, planned=9))
    assert "0.15 points below the paper's 99.40%." in text(content(99.25, paper=Paper(99.4, "", 50, -0.15)))
    assert "0.10 points above the paper's 99.40%." in text(content(99.5, paper=Paper(99.4, "", 50, 0.10)))
    assert "The paper has 99.40% after 50 epochs." in text(content(99.0, paper=Paper(99.4, "", 50, None)))


def test_integer_programs_are_named_with_accuracy_and_latency():
    program = IntegerProgram("int8.tadder", 98.95, 58e-6, 1, 1, {"bits": 7})
    assert "As integers, on one thread: 98.95% and 0.0580 ms an image (7 bits)." in text(
        content(99.0, programs=[program])
    )
    untested = IntegerProgram("int8.tadder", None, 58e-6, 1, 1, {})
    both = text(content(99.0, programs=[untested]), content(98.0, "CNN", programs=[program]), content(97.0, "BNN"))
    assert "thread: AdderNet 0.0580 ms an image; CNN 98.95% and 0.0580 ms an image (7 bits)." in both


def test_runs_are_ordered_and_small_differences_are_doubted():
    far, near, best = (
        content(90.0, "BNN", images=10_000),
        content(99.0, "CNN", images=10_000),
        content(99.1, images=10_000),
    )
    assert text(far, near, best) == (
        "AdderNet classifies 99.10% of the test images correctly. CNN is 0.10 points behind, at 99.00%, which is no "
        "clear difference: 10,000 test images show one only from 0.27 points on. BNN is 9.10 points behind, at 90.00%."
    )
    assert "no clear difference" not in text(content(99.0), content(99.1, "CNN"))  # the number of images is not known
    assert "CNN is equal." in text(content(99.0), content(99.0, "CNN", images=1000))


def test_a_test_at_chance_is_explained():
    lagging = content(10.2, images=1000)
    assert "no better than one answer to every image, that on training images is 90.0%" in text(lagging)
    assert "AdderNet: the test accuracy is no better" in text(lagging, content(99.0, "CNN", images=1000))
    assert "no better" not in text(content(20.0, images=1000))

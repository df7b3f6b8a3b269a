"""Test streamed batches: independent of the number of workers and processes, resumable, with limited prefetch."""

import dataclasses
import os
import re
from itertools import islice

import pytest
import torch
from tests.data.samples import Files, everything, labels_of

from torchadder.data import RandomResizedCrop, StreamedSplit, open_batches
from torchadder.data import streamed as module
from torchadder.data.registry import Normalization
from torchadder.errors import UserError
from torchadder.train import Progress, Run, train

pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forks, Python 3.12
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than processors
]
SIZE = 8
PLAIN = Normalization.of([0.0] * 3, [1 / 255] * 3)  # pixels as they are in the file


def split_of(count, damaged=(), on_error="stop"):
    return StreamedSplit("files", Files(count, damaged), SIZE, PLAIN, on_error)


def batches_of(split, size=4, **options):
    return open_batches(split, size, **{"workers": 0, **options})


def training(split, size=4, **options):
    return batches_of(split, size, train=True, augment=RandomResizedCrop(), **options)


def assert_equal(one, other):
    assert all(map(torch.equal, one, other))


def refusal_of(batches):
    """The line that iteration ends with, without pytest's record of it, which keeps workers until they time out."""
    try:
        everything(batches)
    except UserError as error:
        return str(error)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Batches of several requests, which end in a shorter one."""
    monkeypatch.setattr(module, "PART", 3)


def test_crops_go_with_their_labels():
    images, labels = everything(training(split_of(11)))
    assert images.shape == (8, 3, SIZE, SIZE)
    assert torch.equal(images[:, 0].round(), labels.view(-1, 1, 1).expand(-1, SIZE, SIZE).float())


@pytest.mark.parametrize("options", [{}, dict(train=True, augment=RandomResizedCrop(), seed=5)])
def test_the_number_of_workers_changes_nothing(options):
    split = split_of(29, damaged={3, 4, 20}, on_error="skip")
    expected = batches_of(split, 8, **options)
    expected = [everything(expected) for _ in range(2)]
    for workers in (1, 2):
        batches = batches_of(split, 8, workers=workers, **options)
        for epoch in expected:  # the second by the same workers
            assert_equal(everything(batches), epoch)


def test_an_iteration_that_is_left_early_changes_none_after_it():
    one, other = (training(split_of(20), workers=1) for _ in range(2))
    everything(one)
    [*islice(other, 2)]
    assert_equal(everything(one), everything(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_a_few_parts_ahead_at_most(workers):
    split = split_of(200)
    taken = 0
    for _, labels in batches_of(split, 8, workers=workers):
        taken += len(labels)
        assert split.source.reads.value <= taken + (module.PREFETCH + 1) * workers * module.PART
    assert split.source.reads.value == 200


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers):
    assert refusal_of(batches_of(split_of(9, damaged={5}), workers=workers)) == (
        "files: 5.png (cannot identify image file) cannot be used; replace it, or leave such images out "
        "with on_error=skip"
    )


@pytest.mark.parametrize("train", [False, True])
def test_the_next_image_replaces_a_damaged_one(capsys, train):
    whole, other = split_of(12), split_of(12, damaged={3, 4, 11}, on_error="skip")
    expected, found = (batches_of(split, train=train) for split in (whole, other))
    for _ in range(2):
        stand_ins = {3: 5, 4: 5, 11: 0}
        assert labels_of(found) == [[stand_ins.get(label, label) for label in part] for part in labels_of(expected)]
        line = capsys.readouterr().err
        assert line.startswith("files: 3 of 12 images cannot be used: ")
        assert "11.png (cannot identify image file)" in line
        assert line.endswith("; replaced by the next ones\n")


def test_no_line_without_damage(capsys):
    everything(batches_of(split_of(5, on_error="skip")))
    assert capsys.readouterr().err == ""


def test_too_many_damaged_in_a_row(monkeypatch):
    with pytest.raises(UserError, match=r"files: 4 images in a row cannot be used: 0.png \(cannot identify.*3.png"):
        everything(batches_of(split_of(4, damaged=range(4), on_error="skip")))
    monkeypatch.setattr(module, "MAX_TRIES", 2)
    with pytest.raises(UserError, match=r"files: 2 images in a row cannot be used: 2.png \([^)]*\), 3.png \([^)]*\)$"):
        everything(batches_of(split_of(9, damaged={2, 3}, on_error="skip")))


class Fatal(Files):
    def read(self, index):
        os._exit(3)


def test_a_dead_worker_gets_one_line():
    split = StreamedSplit("files", Fatal(5), SIZE, PLAIN)
    line = refusal_of(batches_of(split, workers=1))
    assert re.fullmatch(r"a process that decodes images ended: .* Try fewer, workers=1 for example", line)


@pytest.mark.parametrize(("processors", "processes", "workers"), [(2, 1, 2), (64, 1, 8), (64, 16, 4), (4, 8, 1)])
def test_workers_by_default(monkeypatch, processors, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(processors), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert module.default_workers() == workers


class StopsAfter(Progress):
    def __init__(self, epoch):
        self.epoch = epoch

    def epoch_done(self, row):
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


def test_resumed_training_gives_the_same_weights(tiny_recipe, tmp_path):
    """Resume streamed, augmented training with averaged weights, with another number of workers."""
    for i in range(12):
        for split in ("train", "test"):
            path = tmp_path / "images" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Files(0).content(17 * i))
    recipe = dataclasses.replace(
        tiny_recipe, dataset=f"imagefolder:{tmp_path / 'images'},size=32", augment=True, batch_size=4, ema=0.5
    )
    straight = Run.open(tmp_path / "straight", recipe)
    train(straight, workers=0)
    with pytest.raises(KeyboardInterrupt):
        train(Run.open(tmp_path / "broken", recipe), progress=StopsAfter(1), workers=0)
    continued = Run.open(tmp_path / "broken", recipe, resume=True)
    train(continued, workers=1)
    for part in ("model", "trained"):
        one, other = straight.state[part], continued.state[part]
        assert all(torch.equal(one[name], other[name]) for name in one)

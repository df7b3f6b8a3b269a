"""Test deploy: a data set that does not fit is refused, calibration images and metadata are those of the data set."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conftest import patterns

from torchadder.data import registry
from torchadder.errors import UserError
from torchadder.quant.calibration import SEVERAL
from torchadder.quant.deploy import (
    calibration_images,
    gives_one_answer,
    image_metadata,
    matching_dataset,
    was_augmented,
)

NAMES = tuple("abcdefghij")
PIXELS = patterns("pixels", 0.5, 70, 30, NAMES)


@pytest.fixture(autouse=True)
def dataset(monkeypatch):
    monkeypatch.setitem(registry._DATASETS, "pixels", lambda data_dir: PIXELS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, None, None, 1, 10), r"net does not say what it was trained on: pass dataset=\S*\|mnist"),
        (("pixels", "other", None, 3, 10), "net takes 3 channels and knows 10 classes; dataset=pixels has 1 and 10"),
        (("pixels", "other", None, 1, 5), "net takes 1 channels and knows 5 classes; dataset=pixels has 1 and 10"),
        (
            ("pixels", "other", None, 1, 10, (28, 28)),
            "net takes images of 28 x 28; those of dataset=pixels have 32 x 32",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        matching_dataset(Path("net"), *arguments)


def test_missing_images_of_the_training(tmp_path):
    words = "no folder .*; net was trained on them: pass dataset=NAME for other images"
    with pytest.raises(UserError, match=words):
        matching_dataset(Path("net"), None, "imagefolder:none", tmp_path, 3, 10)
    with pytest.raises(UserError, match="no folder") as caught:
        matching_dataset(Path("net"), "imagefolder:none", None, tmp_path, 3, 10)
    assert "trained on" not in str(caught.value)


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_a_data_set_that_fits_is_returned(size):
    assert matching_dataset(Path("net"), "pixels", None, None, 1, 10, size) is PIXELS
    assert matching_dataset(Path("net"), None, "pixels", None, 1, 10, size) is PIXELS


@pytest.mark.parametrize(("count", "expected"), [(7, [7]), (64, [32, 32]), (50, [25, 25]), (512, [23, 23, 23])])
def test_calibration_images_come_in_batches_of_one_size(count, expected):
    batches = calibration_images(PIXELS, count)
    assert [len(batch) for batch in batches] == expected
    assert all(torch.equal(one, other) for one, other in zip(batches, calibration_images(PIXELS, count), strict=True))
    assert not torch.equal(batches[0], calibration_images(PIXELS, count, seed=1)[0])


def test_metadata_of_the_images():
    found = image_metadata(PIXELS)
    assert (found["mean"].item(), found["std"].item()) == (0.5, 0.25)
    assert (found["part"], found["classes"]) == ("whole", [*NAMES])
    float_images = replace(PIXELS.test, pixels=PIXELS.test.images, normalization=None)
    assert image_metadata(replace(PIXELS, test=float_images, classes=())) == {}


def test_a_checkpoint_without_a_run_counts_as_augmented(tmp_path):
    assert was_augmented(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("sizes", "others", "count", "expected"),
    [
        ([50, 50], 5, 100, True),  # nine tenths of the way from 50% to 100%
        ([50, 50], 6, 100, False),
        ([90, 10], 1, 100, True),
        ([90, 10], 2, 100, False),  # though 98 of 100 have one answer: 90 are of that class
        ([100], 0, 100, False),  # of a single class
        ([50, 50], 0, SEVERAL, True),
        ([50, 50], 0, SEVERAL - 1, False),  # too few to tell
    ],
)
def test_one_answer_to_images_of_several_classes(sizes, others, count, expected):
    answers = (torch.arange(count) < others).long()
    batches = [torch.nn.functional.one_hot(part, 2).float() for part in answers.split(30)]
    assert gives_one_answer(lambda images: images, batches, torch.tensor(sizes)) is expected

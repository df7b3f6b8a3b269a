"""MNIST: where it is found, what it becomes, and the line that each wrong folder gets."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from torchadder.data import list_datasets, load_dataset, mnist
from torchadder.data.folders import find_files
from torchadder.errors import UserError


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw"])
def test_found_in_data_folder(tiny_mnist, tmp_path, below, packed):
    tiny_mnist(tmp_path / "data" / below, packed)
    dataset = load_dataset("mnist", tmp_path / "data")
    assert (len(dataset.train), len(dataset.test)) == (9, 5)
    assert (dataset.num_classes, dataset.in_chans) == (10, 1)


def test_places_are_searched_in_order(tiny_mnist, tmp_path, monkeypatch):
    names = tuple(mnist.MD5)
    assert find_files("mnist", names, None) is None
    tiny_mnist(tmp_path / "cache" / "torchadder" / "mnist")
    assert find_files("mnist", names, None)[0].parent == tmp_path / "cache" / "torchadder" / "mnist"
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "variable"))
    (tmp_path / "variable").mkdir()  # without the files it is passed over
    assert find_files("mnist", names, None)[0].parent == tmp_path / "cache" / "torchadder" / "mnist"
    tiny_mnist(tmp_path / "variable" / "mnist")
    assert find_files("mnist", names, None)[0].parent == tmp_path / "variable" / "mnist"
    tiny_mnist(tmp_path / "flag")
    assert find_files("mnist", names, tmp_path / "flag")[0].parent == tmp_path / "flag"


def test_incomplete_cache_counts_as_empty(tiny_mnist, tmp_path):
    tiny_mnist(tmp_path / "cache" / "torchadder" / "mnist")
    remove(tmp_path / "cache" / "torchadder" / "mnist")
    assert find_files("mnist", tuple(mnist.MD5), None) is None


def test_images_are_bilinear_and_normalised(tiny_mnist, tiny_arrays, tmp_path):
    tiny_mnist(tmp_path)
    train = load_dataset("mnist", tmp_path).train
    images = tiny_arrays["train-images-idx3-ubyte"].astype(np.float64) / 255
    at = (np.arange(32) + 0.5) * 28 / 32 - 0.5  # the pixel centres of the larger grid (align_corners=False)
    left = np.clip(np.floor(at), 0, 27).astype(int)
    right, part = np.minimum(left + 1, 27), np.clip(at, 0, 27) - left
    rows = images[:, left] * (1 - part)[:, None] + images[:, right] * part[:, None]
    expected = rows[:, :, left] * (1 - part) + rows[:, :, right] * part
    expected = (expected - 0.1307) / 0.3081
    assert train.images.dtype == torch.float32
    assert train.images.shape == (9, 1, 32, 32)
    np.testing.assert_allclose(train.images[:, 0].numpy(), expected, rtol=0, atol=2e-6)
    assert train.labels.dtype == torch.int64
    assert train.labels.tolist() == tiny_arrays["train-labels-idx1-ubyte"].tolist()


def remove(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def cut(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def swap(folder):
    (folder / "train-labels-idx1-ubyte.gz").rename(folder / "x")
    (folder / "t10k-labels-idx1-ubyte.gz").rename(folder / "train-labels-idx1-ubyte.gz")
    (folder / "x").rename(folder / "t10k-labels-idx1-ubyte.gz")


def unreadable(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").mkdir()


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


WRONG = [  # change to a good folder -> the words that the message must contain
    (remove, "holds a part of mnist, but not t10k-labels-idx1-ubyte.gz"),
    (cut, "train-images-idx3-ubyte.gz: truncated"),
    (swap, "train-labels-idx1-ubyte.gz: not the published content"),
    (unreadable, "holds a part of mnist, but not t10k-labels-idx1-ubyte.gz"),
    (empty, "holds no mnist: expected train-images-idx3-ubyte.gz, "),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_wrong_folder_gets_one_line(tiny_mnist, tmp_path, change, words):
    tiny_mnist(tmp_path / "data")
    change(tmp_path / "data")
    with pytest.raises(UserError, match=words) as caught:
        load_dataset("mnist", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_folder_that_is_none(tiny_mnist, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--data .*nowhere is no folder"):
        load_dataset("mnist", tmp_path / "nowhere")
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TORCHADDER_DATA .*nowhere is no folder"):
        load_dataset("mnist")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ((3, 28, 28), [1, 2], "do not go with"),
        ((3, 28), [1, 2, 3], "do not go with"),
        ((0, 28, 28), [], "do not go with"),
        ((3, 28, 28), [1, 2, 10], "a label is 10"),
    ],
)
def test_arrays_that_are_no_split(images, labels, words):
    with pytest.raises(UserError, match=words):
        mnist.MNIST.split(np.zeros(images, np.uint8), np.array(labels, np.uint8), source="file")


def test_unknown_data_set():
    assert "mnist" in list_datasets()
    with pytest.raises(UserError, match=r"unknown data set 'mnits'; known: .*mnist"):
        load_dataset("mnits")


def real_mnist():
    places = [Path(p) for p in [os.environ.get("TORCHADDER_DATA"), Path.home() / ".cache/torchadder"] if p]
    return next((p for p in places if (p / "mnist" / "train-images-idx3-ubyte.gz").is_file()), None)


@pytest.mark.skipif(real_mnist() is None, reason="no MNIST at hand: set TORCHADDER_DATA")
def test_the_real_mnist():
    dataset = load_dataset("mnist", real_mnist())
    assert dataset.train.images.shape == (60_000, 1, 32, 32)
    assert dataset.test.images.shape == (10_000, 1, 32, 32)
    assert dataset.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert torch.bincount(dataset.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert abs(dataset.train.images.mean().item()) < 0.01

"""Test that an image file is preprocessed as in its data set, and that the settings survive a file."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from torchadder.data import Dataset, Split, load_dataset, open_batches
from torchadder.data.preprocessing import Preprocessing
from torchadder.data.registry import Normalization


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photo(height=30, width=40):
    """Return a smooth image, so that every way to crop and resize it gives other pixels."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([255 * rows // height, 255 * columns // width, 128 + 0 * rows], 2).astype(np.uint8)


def kept(preprocessing, channels):
    """Return it as it comes back from a file."""
    return Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())), channels)


def test_images_of_28_become_those_of_the_data_set(tiny_mnist, tiny_arrays, tmp_path):
    tiny_mnist(tmp_path / "data")
    dataset = load_dataset("mnist", tmp_path / "data")
    preprocessing = kept(Preprocessing.of(dataset), 1)
    assert preprocessing.to_dict() == {"mode": "L", "mean": "0.1307", "std": "0.3081", "part": "whole"}
    test = tiny_arrays["t10k-images-idx3-ubyte"]
    found = [preprocessing.read(Image, png(image), (32, 32)) for image in test]
    assert {size for _, size in found} == {(28, 28)}
    torch.testing.assert_close(torch.cat([x for x, _ in found]), dataset.test.images, rtol=0, atol=1e-5)


def test_colour_images_of_the_size_of_the_data_set_are_its_pixels():
    pixels = torch.from_numpy(photo(32, 32)).permute(2, 0, 1)[None]
    split = Split(pixels, torch.zeros(1).long(), Normalization.of((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    preprocessing = kept(Preprocessing.of(Dataset("colours", 10, 3, split, split)), 3)
    assert preprocessing.to_dict()["mean"] == "0.4914 0.4822 0.4465"
    x, size = preprocessing.read(Image, png(photo(32, 32)), (32, 32))
    assert torch.equal(x, split.images)
    assert size == (32, 32)
    x, size = preprocessing.read(Image, png(photo(64, 16)), (32, 32))
    torch.testing.assert_close(x, split.images, rtol=0, atol=0.2)  # the whole of it, whatever its shape
    assert size == (64, 16)


def test_images_that_stream_are_cut_as_there(tmp_path):
    for where in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "0.png").write_bytes(png(photo()))
    dataset = load_dataset(f"imagefolder:{tmp_path},size=16")
    [(expected, _)] = open_batches(dataset.test, 1, workers=0)
    preprocessing = kept(Preprocessing.of(dataset), 3)
    assert preprocessing.part == "centre"
    x, size = preprocessing.read(Image, png(photo()), (16, 16))
    assert torch.equal(x, expected)
    assert size == (30, 40)
    assert [*dataset.classes] == ["cat", "dog"]


def test_a_data_set_of_numbers_has_none():
    split = Split(torch.zeros(1, 1, 4, 4), torch.zeros(1).long())
    assert Preprocessing.of(Dataset("numbers", 10, 1, split, split)) is None


@pytest.mark.parametrize(
    ("mean", "pixel", "words"),
    [
        (0.13, 200, "drawn on a light ground, the training images on a dark one"),
        (0.13, 120, None),
        (0.9, 60, "drawn on a dark ground, the training images on a light one"),
        (0.9, 140, None),
        (0.29, 200, None),  # Fashion-MNIST: clothes may fill an image
        (0.5, 0, None),
    ],
)
def test_the_other_ground_is_noticed(mean, pixel, words):
    preprocessing = Preprocessing(Normalization.of([mean], [0.3]))
    image = np.full((4, 4), pixel, np.uint8)
    x, _ = preprocessing.read(Image, png(image), (4, 4))
    assert preprocessing.opposite_ground(x) == words
    inverted, _ = preprocessing.read(Image, png(255 - image), (4, 4), invert=True)
    assert torch.equal(x, inverted)

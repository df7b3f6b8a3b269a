"""Image files for tests: each has a colour of its own, by which it is known again."""

import io

import numpy as np

COLOURS = 200


def colour_of(number):
    return (number * 37 % 256, number * 91 % 256, number * 151 % 256)


def content_of(number, size=(40, 30), form="JPEG"):
    """The bytes of a file of one colour, ``size`` wide and high."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, colour_of(number)).save(file, form)
    return file.getvalue()


def numbers_of(images, normalization):
    """The numbers of images float32 (N, 3, H, W) of one colour each, as they were normalised."""
    mean, std = (t.flatten().numpy() for t in normalization)
    colours = (images.mean((2, 3)).numpy() * std + mean) * 255
    known = np.array([colour_of(number) for number in range(COLOURS)])
    distances = np.abs(colours[:, None] - known).max(2)
    assert distances.min(1).max() < 4  # what JPEG makes of it
    return distances.argmin(1).tolist()

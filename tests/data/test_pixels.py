"""Pixels of one file: the part that is asked for, whatever the mode, and JPEGs decoded no larger than needed."""

import io

import numpy as np
import pytest

from torchadder.data.pixels import Crop, Damaged, cropped, listed, load_pillow, reason_of

Image = pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")


def smooth(height, width):
    """A gradient in each channel: what it is at a place says where that is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 0 * x], axis=2).astype(np.uint8)


def encoded(pixels, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def decoded(content, crop, size):
    return cropped(load_pillow(), content, lambda width, height: crop, size)


def test_a_box_of_the_size_asked_for_is_copied():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    expected = pixels[5:18, 11:24].transpose(2, 0, 1)
    box = (11, 5, 24, 18)
    assert np.array_equal(decoded(encoded(pixels), Crop(box), 13), expected)
    assert np.array_equal(decoded(encoded(pixels), Crop(box, mirrored=True), 13), expected[:, :, ::-1])


@pytest.mark.parametrize("box", [(0, 0, 500, 375), (100, 50, 380, 290), (7.3, 11.9, 493.2, 360.4)])
@pytest.mark.parametrize("size", [7, 64, 224])
def test_other_boxes_are_resized(box, size):
    """Against where the middle of each pixel lies in the gradient; a step is 255/500, and borders are averages."""
    found = decoded(encoded(smooth(375, 500)), Crop(box), size).astype(float)
    middles = (np.arange(size) + 0.5) / size
    x = 255 * (box[0] + (box[2] - box[0]) * middles) / 500
    y = 255 * (box[1] + (box[3] - box[1]) * middles) / 375
    inside = slice(1, -1)
    assert np.abs(found[0] - x)[:, inside].max() < 2
    assert np.abs(found[1].T - y)[:, inside].max() < 2
    assert (found[2] == 127).all()


def test_a_function_sees_the_size_of_the_file():
    seen = []

    def crop(width, height):
        seen.append((width, height))
        return Crop((0, 0, 3, 3))

    cropped(load_pillow(), encoded(smooth(1200, 1600), "JPEG"), crop, 10)
    assert seen == [(1600, 1200)]


@pytest.mark.parametrize(
    ("box", "decoded_size"),
    [
        ((0, 0, 1600, 1200), (200, 150)),  # 16 times smaller is asked for, and a JPEG can do an eighth
        ((0, 0, 400, 400), (400, 300)),  # a quarter
        ((100, 100, 299, 299), (1600, 1200)),  # less than a half is not asked for
    ],
)
def test_a_jpeg_is_decoded_at_the_size_that_is_needed(monkeypatch, box, decoded_size):
    resize, seen = Image.Image.resize, []

    def spy(image, *arguments, **options):
        seen.append(image.size)
        return resize(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    found, whole = (
        decoded(encoded(smooth(1200, 1600), form, **options), Crop(box), 100).astype(float)
        for form, options in (("JPEG", dict(quality=95, subsampling=0)), ("PNG", {}))
    )
    assert seen == [decoded_size, (1600, 1200)]
    assert np.abs(found - whole).max() < 5


@pytest.mark.parametrize(
    ("mode", "form"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")]
)
def test_other_modes_become_rgb(mode, form):
    file = io.BytesIO()
    Image.fromarray(smooth(16, 16)).convert(mode).save(file, form)
    expected = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded(file.getvalue(), Crop((0, 0, 16, 16)), 16), expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot identify image file"),
        (b"<html>", "cannot identify image file"),
        (encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:-500], "truncated"),
        (encoded(np.zeros((8, 8), np.uint16)), "mode I;16, expected at most 8 bits a channel"),
    ],
)
def test_what_is_wrong_in_one_short_line(content, words):
    with pytest.raises(Exception, match=words) as caught:
        decoded(content, Crop((0, 0, 8, 8)), 8)
    reason = reason_of(caught.value)
    assert words in reason
    assert "\n" not in reason
    assert "BytesIO" not in reason


def test_a_list_names_ten():
    damaged = [Damaged(f"{i}.jpg", "torn") for i in range(12)]
    assert listed(damaged[:2]) == "0.jpg (torn), 1.jpg (torn)"
    assert listed(damaged).endswith(", 9.jpg (torn) and 2 more")

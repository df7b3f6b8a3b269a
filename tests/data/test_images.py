"""Test decoding and cropping of image files, and augmentation."""

import io
import math
import random

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, RandomResizedCrop, load_dataset
from torchadder.data.images import Crop, centre_crop, decode_crop, load_pillow
from torchadder.data.preprocessing import Preprocessing
from torchadder.data.registry import Normalization

Image = pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")

NORMALIZATION = Normalization.of((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def smooth(height, width):
    """Return a gradient in each channel, so that a value tells its place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 0 * x], axis=2).astype(np.uint8)


def encoded(pixels, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def decoded(content, crop, size):
    return decode_crop(load_pillow(), content, lambda width, height: crop, size)


def test_a_box_of_the_requested_size_is_copied():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    expected = pixels[5:18, 11:24].transpose(2, 0, 1)
    box = (11, 5, 24, 18)
    assert np.array_equal(decoded(encoded(pixels), Crop(box), 13), expected)
    assert np.array_equal(decoded(encoded(pixels), Crop(box, mirrored=True), 13), expected[:, :, ::-1])


@pytest.mark.parametrize("box", [(0, 0, 500, 375), (100, 50, 380, 290), (7.3, 11.9, 493.2, 360.4)])
@pytest.mark.parametrize("size", [7, 64, 224])
def test_other_boxes_are_resized(box, size):
    """Compare with the gradient at the middle of each pixel; a step is 255/500, and borders are averages."""
    found = decoded(encoded(smooth(375, 500)), Crop(box), size).astype(float)
    middles = (np.arange(size) + 0.5) / size
    x = 255 * (box[0] + (box[2] - box[0]) * middles) / 500
    y = 255 * (box[1] + (box[3] - box[1]) * middles) / 375
    inside = slice(1, -1)
    assert np.abs(found[0] - x)[:, inside].max() < 2
    assert np.abs(found[1].T - y)[:, inside].max() < 2
    assert (found[2] == 127).all()


@pytest.mark.parametrize(
    ("box", "decoded_size"),
    [
        ((0, 0, 1600, 1200), (200, 150)),  # 16 times smaller is asked for; JPEG supports up to an eighth
        ((0, 0, 400, 400), (400, 300)),  # a quarter
        ((100, 100, 299, 299), (1600, 1200)),  # less than a half is not asked for
    ],
)
def test_a_jpeg_is_decoded_at_the_needed_size(monkeypatch, box, decoded_size):
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


# Forms of a file


def saved(image, form, **options):
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def plain(mode, form, **options):
    """Store an image in one of Pillow's modes; Pillow's own conversion tells its pixels."""
    image = Image.fromarray(smooth(*SIZE)).convert(mode)
    content = saved(image, form, **options)
    return content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def turned(form, orientation, turn):
    """Store an image turned by ``turn``, with the EXIF orientation that turns it back."""
    pixels = smooth(*SIZE) // 64 * 64
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(quality=100, subsampling=0) if form == "JPEG" else dict(lossless=True) if form == "WEBP" else {}
    return saved(Image.fromarray(np.ascontiguousarray(turn(pixels))), form, exif=exif, **options), pixels


def transparent(mode, ink):
    """Store a disc of that grey on a transparent ground; the ground becomes white for dark ink, black for light."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (rows - 4) ** 2 + (columns - 7) ** 2 < 9
    grey, alpha = (np.where(disc, value, 0).astype(np.uint8) for value in (ink, 255))
    expected = np.where(disc, ink, 0 if ink >= 128 else 255).astype(np.uint8)
    if mode == "P":
        stored = Image.fromarray(disc.astype(np.uint8), "P")
        stored.putpalette([0, 0, 0, ink, ink, ink])
        content = saved(stored, "PNG", transparency=0)
    elif mode == "I;16":
        content = saved(Image.fromarray(np.where(disc, ink * 257, 7).astype(np.uint16)), "PNG", transparency=7)
    else:
        bands = [Image.fromarray(grey)] * (len(mode) - 1)
        content = saved(Image.merge(mode, [*bands, Image.fromarray(alpha)]), "PNG")
    return content, np.repeat(expected[..., None], 3, 2)


def deep(form):
    grey = smooth(*SIZE)[..., 0]
    content = saved(Image.fromarray(grey.astype(np.uint16) * 257), form)
    return content, np.repeat(grey[..., None], 3, 2)


SIZE = (9, 16)  # height, width
FORMS = {  # content and upright, opaque pixels
    **{f"{mode} {form}": plain(mode, form) for mode in ("1", "L", "RGB") for form in ("PNG", "BMP", "TIFF", "PPM")},
    **{f"{mode} JPEG": plain(mode, "JPEG") for mode in ("L", "RGB", "CMYK")},
    "P PNG": plain("P", "PNG"),
    "P GIF": plain("P", "GIF"),
    "CMYK TIFF": plain("CMYK", "TIFF"),
    "RGB WEBP": plain("RGB", "WEBP"),
    **{f"turned {form}": turned(form, 6, np.rot90) for form in ("JPEG", "PNG", "TIFF", "WEBP")},
    "upside down JPEG": turned("JPEG", 3, lambda pixels: pixels[::-1, ::-1]),
    "mirrored PNG": turned("PNG", 2, lambda pixels: pixels[:, ::-1]),
    **{f"{mode} {ink}": transparent(mode, ink) for mode in ("LA", "RGBA", "P", "I;16") for ink in (10, 240)},
    **{f"16 bits {form}": deep(form) for form in ("PNG", "TIFF", "PPM")},
}
UNIT = Normalization.of([0.0] * 3, [1 / 255] * 3)


def in_memory(content, tmp_path):
    return load_dataset(f"imagefolder:{tmp_path}").train.pixels[0].float()


def streamed(content, tmp_path):
    box = Crop((0, 0, 9, 9))
    return torch.from_numpy(np.ascontiguousarray(decode_crop(load_pillow(), content, lambda w, h: box, 9))).float()


def predicted(content, tmp_path):
    x, size = Preprocessing(UNIT).read(load_pillow(), content, SIZE)
    assert size == SIZE
    return x[0]


@pytest.mark.parametrize("reader", [in_memory, streamed, predicted])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form, reader, nowhere_else, tmp_path):
    content, expected = FORMS[form]
    for split in ("train", "test"):
        for kind in "ab":
            (tmp_path / split / kind).mkdir(parents=True)
            (tmp_path / split / kind / "x.png").write_bytes(content)  # the content decides, not the name
    found = reader(content, tmp_path)
    expected = torch.from_numpy(expected.transpose(2, 0, 1).copy())[..., : found.shape[2]]
    tolerance = 3 if "JPEG" in form and ("turned" in form or "upside" in form) else 0.01  # JPEG's loss
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(Image.new("LA", (3, 3), (9, 0)), "PNG"), "every pixel is transparent"),
        (saved(Image.new("F", (3, 3)), "TIFF"), "mode F, expected grey, RGB, CMYK or a palette of at most 16 bits"),
        (saved(Image.new("I", (3, 3)), "TIFF"), "mode I, expected grey, RGB, CMYK or a palette of at most 16 bits"),
        (saved(Image.new("L", (3, 3)), "ICO"), "cannot identify image file"),
    ],
)
def test_images_without_pixels_to_use_are_refused(content, words):
    with pytest.raises((ValueError, OSError), match=words):
        decoded(content, Crop((0, 0, 3, 3)), 3)


# Augmentation


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize(("n", "height", "width"), [(1, 1, 1), (3, 5, 7), (17, 8, 3)])
def test_augmentation_is_the_usual_recipe(n, height, width, padding):
    """Compare with the usual recipe, which pads normalised images with the value of black, one image at a time."""
    augment = Augmentation(padding)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, height, width), np.uint8))
    choices = augment.draw(n, torch.Generator().manual_seed(1))
    before = images.clone()
    found = NORMALIZATION(augment.apply(images, choices))
    assert torch.equal(images, before)
    black = ((0 - NORMALIZATION.mean) / NORMALIZATION.std).numpy()
    for i, (top, left, mirrored) in enumerate(choices.T.tolist()):
        padded = np.broadcast_to(black, (3, height + 2 * padding, width + 2 * padding)).copy()
        padded[:, padding : padding + height, padding : padding + width] = NORMALIZATION(images)[i].numpy()
        crop = padded[:, top : top + height, left : left + width]
        assert np.array_equal(found[i].numpy(), crop[:, :, ::-1] if mirrored else crop)


@pytest.mark.parametrize("mirror", [False, True])
def test_every_crop_and_each_side_are_drawn_equally_often(mirror):
    choices = Augmentation(1, mirror).draw(9000 * (1 + mirror), torch.Generator().manual_seed(0))
    _, counts = choices.unique(dim=1, return_counts=True)
    assert len(counts) == 3 * 3 * (1 + mirror)
    assert (counts - 1000).abs().max() < 150  # almost five standard deviations


BOUNDS = [(500, 375), (375, 500), (224, 224), (64, 1000), (1000, 64), (3, 2), (1, 1)]


@pytest.mark.parametrize(("width", "height"), BOUNDS)
def test_random_resized_crops_are_inside_and_within_the_bounds(width, height):
    crop = RandomResizedCrop()
    drawn = [crop.draw(width, height, random.Random(i)) for i in range(300)]
    for (left, upper, right, lower), _ in drawn:
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        w, h = right - left, lower - upper
        assert (w - 0.5) * (h - 0.5) / (width * height) <= 1  # rounded to whole pixels, by a half at most
        if min(w, h) > 20:
            assert 3 / 4 * 0.95 < w / h < 4 / 3 * 1.05
    assert {crop.mirrored for crop in drawn} == {False, True}


def test_random_resized_crops_are_uniform():
    """Compare with the distribution, in an image so large that rounding is negligible and most shapes fit."""
    drawn = [RandomResizedCrop(scale=(0.08, 0.6)).draw(9000, 9000, random.Random(i)) for i in range(4000)]
    boxes = torch.tensor([crop.box for crop in drawn], dtype=torch.float64)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = w * h / 9000**2, torch.log(w / h) / math.log(4 / 3)
    assert ((area > 0.0799) & (area < 0.6001)).all()
    assert ((ratio > -1.001) & (ratio < 1.001)).all()
    assert area.mean().item() == pytest.approx(0.34, abs=0.01)
    assert area.std().item() == pytest.approx(0.52 / math.sqrt(12), rel=0.05)
    assert ratio.mean().item() == pytest.approx(0, abs=0.04)
    assert ratio.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.05)
    place = boxes[:, 0] / (9000 - w)
    assert place.mean().item() == pytest.approx(0.5, abs=0.02)
    assert place.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert sum(crop.mirrored for crop in drawn) == pytest.approx(2000, abs=130)


@pytest.mark.parametrize(("width", "height", "box"), [(1000, 30, (480, 0, 520, 30)), (30, 1000, (0, 480, 30, 520))])
def test_without_a_fitting_shape_the_crop_is_the_largest_in_the_middle(width, height, box):
    crop = RandomResizedCrop(scale=(0.9, 1.0)).draw(width, height, random.Random(0))
    assert crop.box == box


def test_a_seed_decides_the_crop():
    draws = [RandomResizedCrop().draw(500, 375, random.Random(seed)) for seed in ("3,1,7", "3,1,7", "3,1,8")]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("width", "height"), [(512, 512), (256, 341), (500, 375), (90, 300)])
def test_centre_crop_is_224_of_the_image_resized_to_256(width, height):
    (left, upper, right, lower), mirrored = centre_crop(width, height)
    factor = 256 / min(width, height)
    assert factor * (right - left) == pytest.approx(224) == factor * (lower - upper)
    assert factor * left == pytest.approx((factor * width - 224) / 2)
    assert factor * upper == pytest.approx((factor * height - 224) / 2)
    assert not mirrored

"""Augmentation: each crop and flip is the one that was drawn, black stays black when normalised, a seed repeats it."""

import math
import random

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, Batches, RandomResizedCrop, Split
from torchadder.data.augment import centre_crop
from torchadder.data.registry import Normalization

NORMALIZATION = Normalization.of((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def split(n, height=5, width=7, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), np.uint8)
    return Split(torch.from_numpy(pixels), torch.arange(n), NORMALIZATION)


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize(("n", "height", "width"), [(1, 1, 1), (3, 5, 7), (17, 8, 3)])
def test_one_image_at_a_time(n, height, width, padding):
    """Against the recipe as it is usually written: pad what is normalised with the value that black has there."""
    augment = Augmentation(padding)
    images = split(n, height, width)
    choices = augment.draw(n, torch.Generator().manual_seed(1))
    found = NORMALIZATION(augment.apply(images.pixels, choices))
    black = ((0 - NORMALIZATION.mean) / NORMALIZATION.std).numpy()
    for i, (top, left, mirrored) in enumerate(choices.T.tolist()):
        padded = np.broadcast_to(black, (3, height + 2 * padding, width + 2 * padding)).copy()
        padded[:, padding : padding + height, padding : padding + width] = images.images[i].numpy()
        crop = padded[:, top : top + height, left : left + width]
        assert np.array_equal(found[i].numpy(), crop[:, :, ::-1] if mirrored else crop)


def test_every_crop_and_both_sides_are_drawn_equally_often():
    choices = Augmentation(1).draw(18_000, torch.Generator().manual_seed(0))
    _, counts = choices.unique(dim=1, return_counts=True)
    assert len(counts) == 3 * 3 * 2
    assert (counts - 1000).abs().max() < 150  # almost five standard deviations


def test_images_keep_their_type_and_the_input_its_values():
    images = split(4).pixels
    before = images.clone()
    found = Augmentation().apply(images, Augmentation().draw(4, torch.Generator()))
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before)


def epoch(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_hold_a_crop_of_the_image_of_each_label():
    data = split(11)
    for images, labels in Batches(data, 3, train=True, augment=Augmentation(2)):
        assert (images.dtype, images.shape) == (torch.float32, (3, 3, 5, 7))
        for image, label in zip(images, labels, strict=True):
            crops = torch.tensor([[y, x, m] for y in range(5) for x in range(5) for m in range(2)]).T
            every = NORMALIZATION(Augmentation(2).apply(data.pixels[label].expand(50, -1, -1, -1), crops))
            assert (every == image).flatten(1).all(1).any()


def test_seed_decides_and_epochs_differ():
    data = split(40)
    first, again, other = (Batches(data, 8, train=True, augment=Augmentation(), seed=seed) for seed in (1, 1, 2))
    one = epoch(first)
    assert equal(one, epoch(again))
    assert not equal(one, epoch(other))
    assert not equal(one, epoch(first))


def test_state_continues_with_the_same_augmentations():
    batches = Batches(split(40), 8, train=True, augment=Augmentation(), seed=1)
    epoch(batches)
    state = batches.state_dict()
    expected = [epoch(batches), epoch(batches)]
    other = Batches(split(40), 8, train=True, augment=Augmentation(), seed=99)
    other.load_state_dict(state)
    assert all(equal(ours, epoch(other)) for ours in expected)


def test_an_epoch_left_early_changes_none_after_it():
    whole, early = (Batches(split(40), 8, train=True, augment=Augmentation()) for _ in range(2))
    epoch(whole)
    next(iter(early))
    assert equal(epoch(whole), epoch(early))


def test_order_is_the_one_without_augmentation():
    """The first epoch's: switching the augmentation compares what it does, not two orders."""
    plain, augmented = (Batches(split(40), 8, train=True, augment=augment) for augment in (None, Augmentation()))
    assert torch.equal(epoch(plain)[1], epoch(augmented)[1])


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    epoch(Batches(split(8), 4, train=True, augment=Augmentation()))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_augmentation_uint8_and_float_give_the_same_batches():
    data = split(10)
    ready = Split(data.images, data.labels)
    for train in (False, True):
        assert equal(epoch(Batches(data, 5, train=train)), epoch(Batches(ready, 5, train=train)))


def test_channels_last():
    data = split(8)
    for images, _ in Batches(data, 4, train=True, augment=Augmentation(), memory_format=torch.channels_last):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_images():
    here, there = (
        Batches(split(40), 8, train=True, augment=Augmentation(), device=device) for device in ("cpu", "cuda")
    )
    for (ours, labels), (theirs, their_labels) in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)
        assert torch.equal(their_labels.cpu(), labels)


@pytest.mark.parametrize(
    ("data", "train", "words"),
    [
        (split(8), False, "augment is for training images: expected train=True"),
        (Split(torch.zeros(8, 3, 4, 4), torch.arange(8)), True, "uint8 images with their normalization, got torch.flo"),
    ],
)
def test_refused(data, train, words):
    with pytest.raises(ValueError, match=words):
        Batches(data, 4, train=train, augment=Augmentation())


SIZES = [(500, 375), (375, 500), (224, 224), (64, 1000), (1000, 64), (3, 2), (1, 1)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_resized_crops_are_inside_and_of_the_shapes_asked_for(width, height):
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


def test_random_resized_crops_spread_as_they_should():
    """In an image so large that nothing is rounded and most shapes fit: against the distribution in words."""
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
def test_where_no_shape_fits_it_is_the_largest_in_the_middle(width, height, box):
    crop = RandomResizedCrop(scale=(0.9, 1.0)).draw(width, height, random.Random(0))
    assert crop.box == box


def test_one_source_draws_the_same():
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

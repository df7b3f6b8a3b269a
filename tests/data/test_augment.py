"""Augmentation: each crop and flip is the one that was drawn, black stays black when normalised, a seed repeats it."""

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, Batches, Split
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

"""Test batches of a split in memory: order, shares, augmentation, state, memory format."""

from itertools import chain

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, Batches, Share, Split
from torchadder.data.registry import Normalization
from torchadder.errors import UserError

NORMALIZATION = Normalization.of((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def numbered(n):
    """Return a split whose images hold their index."""
    index = torch.arange(n)
    return Split(index.float().view(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous(), index)


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (9, 3), (3, 7)])
def test_evaluation_keeps_order_and_every_image(n, size):
    batches = Batches(numbered(n), size)
    found = labels_of(batches)
    assert list(chain(*found)) == list(range(n))
    assert len(found) == len(batches)
    assert all(len(part) == size for part in found[:-1])
    assert found == labels_of(batches)


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (9, 3), (7, 7)])
def test_training_shuffles_and_drops_the_last_part(n, size):
    batches = Batches(numbered(n), size, train=True)
    found = labels_of(batches)
    assert [len(part) for part in found] == [size] * (n // size) == [size] * len(batches)
    assert len(set(chain(*found))) == n // size * size


def test_images_go_with_their_labels():
    for train in (False, True):
        for images, labels in Batches(numbered(11), 4, train=train):
            assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_order_follows_seed_and_changes_by_epoch():
    first, again, other = (Batches(numbered(50), 10, train=True, seed=s) for s in (1, 1, 2))
    epoch = labels_of(first)
    assert epoch == labels_of(again)
    assert epoch != labels_of(other)
    assert epoch != labels_of(first)


def test_order_ignores_and_leaves_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = labels_of(Batches(numbered(20), 5, train=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert labels_of(Batches(numbered(20), 5, train=True)) == one


def test_state_continues_with_the_same_orders():
    batches = Batches(numbered(20), 5, train=True)
    labels_of(batches)
    state = batches.state_dict()
    expected = [labels_of(batches), labels_of(batches)]
    other = Batches(numbered(20), 5, train=True, seed=99)
    other.load_state_dict(state)
    assert [labels_of(other), labels_of(other)] == expected


@pytest.mark.parametrize("train", [False, True])
def test_channels_last(train):
    for images, _ in Batches(numbered(8), 4, train=train, memory_format=torch.channels_last):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


def test_batch_larger_than_the_split_is_refused():
    with pytest.raises(UserError, match="batch_size=9 is more than the 8 training images"):
        Batches(numbered(8), 9, train=True)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n", [12, 13, 23])
def test_the_shares_of_all_processes_make_the_whole(world, train, n):
    whole = Batches(numbered(n), 6, train=train)
    parts = [Batches(numbered(n), 6, train=train, share=Share(rank, world)) for rank in range(world)]
    together = sorted(chain(*chain(*map(labels_of, parts))))
    assert together == sorted(chain(*labels_of(whole)))
    assert {(len(part), part.count) for part in parts} == {(len(whole), whole.count)}
    if train:  # and each batch's images in its place: the second epoch of all
        assert [[*chain(*b)] for b in zip(*map(labels_of, parts), strict=True)] == labels_of(whole)


def test_no_batch_is_empty():
    assert labels_of(Batches(numbered(7), 6, share=Share(0, 2))) == [[0, 1, 2]]
    assert labels_of(Batches(numbered(7), 6, share=Share(1, 2))) == [[3, 4, 5], [6]]


def test_processes_must_share_a_training_batch_evenly():
    with pytest.raises(UserError, match="batch_size=8 cannot be shared evenly by 3 processes"):
        Batches(numbered(9), 8, train=True, share=Share(0, 3))


# Augmentation


def coloured(n):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 5, 7), np.uint8)
    return Split(torch.from_numpy(pixels), torch.arange(n), NORMALIZATION)


def epoch(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_hold_a_crop_of_the_image_of_each_label():
    data = coloured(11)
    for images, labels in Batches(data, 3, train=True, augment=Augmentation(2)):
        assert (images.dtype, images.shape) == (torch.float32, (3, 3, 5, 7))
        for image, label in zip(images, labels, strict=True):
            crops = torch.tensor([[y, x, m] for y in range(5) for x in range(5) for m in range(2)]).T
            every = NORMALIZATION(Augmentation(2).apply(data.pixels[label].expand(50, -1, -1, -1), crops))
            assert (every == image).flatten(1).all(1).any()


def test_augmentation_follows_seed_and_changes_by_epoch():
    data = coloured(40)
    first, again, other = (Batches(data, 8, train=True, augment=Augmentation(), seed=seed) for seed in (1, 1, 2))
    one = epoch(first)
    assert equal(one, epoch(again))
    assert not equal(one, epoch(other))
    assert not equal(one, epoch(first))


def test_state_continues_with_the_same_augmentations():
    batches = Batches(coloured(40), 8, train=True, augment=Augmentation(), seed=1)
    epoch(batches)
    state = batches.state_dict()
    expected = [epoch(batches), epoch(batches)]
    other = Batches(coloured(40), 8, train=True, augment=Augmentation(), seed=99)
    other.load_state_dict(state)
    assert all(equal(ours, epoch(other)) for ours in expected)


def test_an_epoch_left_early_changes_none_after_it():
    whole, early = (Batches(coloured(40), 8, train=True, augment=Augmentation()) for _ in range(2))
    epoch(whole)
    next(iter(early))
    assert equal(epoch(whole), epoch(early))


def test_augmentation_keeps_the_order():
    """Compare the first epoch: runs with and without augmentation have the same order."""
    plain, augmented = (Batches(coloured(40), 8, train=True, augment=augment) for augment in (None, Augmentation()))
    assert torch.equal(epoch(plain)[1], epoch(augmented)[1])


def test_augmentation_leaves_the_global_generator():
    before = torch.get_rng_state()
    epoch(Batches(coloured(8), 4, train=True, augment=Augmentation()))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_augmentation_uint8_and_float_give_the_same_batches():
    data = coloured(10)
    ready = Split(data.images, data.labels)
    for train in (False, True):
        assert equal(epoch(Batches(data, 5, train=train)), epoch(Batches(ready, 5, train=train)))


def test_augmented_channels_last():
    data = coloured(8)
    for images, _ in Batches(data, 4, train=True, augment=Augmentation(), memory_format=torch.channels_last):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_images():
    here, there = (
        Batches(coloured(40), 8, train=True, augment=Augmentation(), device=device) for device in ("cpu", "cuda")
    )
    for (ours, labels), (theirs, their_labels) in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)
        assert torch.equal(their_labels.cpu(), labels)


@pytest.mark.parametrize(
    ("data", "train", "words"),
    [
        (coloured(8), False, "augment is for training images: expected train=True"),
        (Split(torch.zeros(8, 3, 4, 4), torch.arange(8)), True, "uint8 images with their normalization, got torch.flo"),
    ],
)
def test_wrong_augmentation_is_refused(data, train, words):
    with pytest.raises(ValueError, match=words):
        Batches(data, 4, train=train, augment=Augmentation())

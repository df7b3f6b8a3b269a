"""Test batches, of images in memory and of streamed ones: order, shares, augmentation, state, memory format."""

from itertools import chain, islice

import numpy as np
import pytest
import torch
from tests.data.samples import Files, everything, labels_of

from torchadder.data import Augmentation, Batches, RandomResizedCrop, Share, Split, StreamedSplit, open_batches
from torchadder.data import streamed as module
from torchadder.data.registry import Normalization

NORMALIZATION = Normalization.of((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
AUGMENTATIONS = {"memory": Augmentation(2), "streamed": RandomResizedCrop()}


def in_memory(count):
    pixels = np.stack([Files.pixels(i) for i in range(count)]).transpose(0, 3, 1, 2)
    return Split(torch.from_numpy(pixels), torch.arange(count), NORMALIZATION)


@pytest.fixture(params=AUGMENTATIONS)
def opened(request, monkeypatch):
    """Return a function that opens batches of ``count`` images of either kind: (count, size, **options) -> Loader."""
    if request.param == "streamed":
        pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")
    monkeypatch.setattr(module, "PART", 3)  # Batches of several requests, which end in a shorter one.

    def open_split(count, size, *, augmented=False, **options):
        split = StreamedSplit("files", Files(count), 8, NORMALIZATION)
        if request.param == "memory":
            split = in_memory(count)
        augment = AUGMENTATIONS[request.param] if augmented else None
        return open_batches(split, size, augment=augment, **{"workers": 0, **options})

    return open_split


def assert_equal(one, other):
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (9, 3), (3, 7)])
def test_evaluation_keeps_order_and_every_image(opened, n, size):
    batches = opened(n, size)
    found = labels_of(batches)
    assert [*chain(*found)] == [*range(n)]
    assert (len(found), n) == (len(batches), batches.count)
    assert all(len(part) == size for part in found[:-1])
    assert found == labels_of(batches)


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (9, 3), (7, 7)])
def test_training_shuffles_and_drops_the_last_part(opened, n, size):
    batches = opened(n, size, train=True)
    found = labels_of(batches)
    assert [len(part) for part in found] == [size] * (n // size) == [size] * len(batches)
    assert len({*chain(*found)}) == n // size * size == batches.count


@pytest.mark.parametrize("train", [False, True])
def test_images_go_with_their_labels(opened, train):
    for images, labels in opened(11, 4, train=train):
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        red = (labels / 255 - 0.5) / 0.25
        torch.testing.assert_close(images[:, 0], red.view(-1, 1, 1).expand(-1, *images.shape[2:]))


def test_seed_and_epoch_decide_order_and_augmentation(opened):
    first, again, other = (opened(40, 8, train=True, augmented=True, seed=seed) for seed in (1, 1, 2))
    images, labels = everything(first)
    assert_equal((images, labels), everything(again))
    assert not torch.equal(everything(other)[1], labels)
    later_images, later = everything(first)
    assert not torch.equal(later, labels)
    assert not torch.equal(images[labels.argsort()], later_images[later.argsort()])


def test_the_global_generator_is_neither_used_nor_changed(opened):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = everything(opened(20, 5, train=True, augmented=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert_equal(everything(opened(20, 5, train=True, augmented=True)), one)


@pytest.mark.parametrize("augmented", [False, True])
def test_state_continues_with_the_same_orders_and_augmentations(opened, augmented):
    batches, other = (opened(20, 5, train=True, augmented=augmented) for _ in range(2))
    everything(batches)
    state = batches.state_dict()
    expected = [everything(batches) for _ in range(2)]
    other.load_state_dict(state)
    for epoch in expected:
        assert_equal(everything(other), epoch)


def test_an_epoch_left_early_changes_none_after_it(opened):
    whole, early = (opened(20, 4, train=True, augmented=True) for _ in range(2))
    everything(whole)
    [*islice(early, 2)]
    assert_equal(everything(whole), everything(early))


@pytest.mark.parametrize("train", [False, True])
def test_channels_last(opened, train):
    for images, _ in opened(8, 4, train=train, augmented=train, memory_format=torch.channels_last):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n", [12, 13, 23])
def test_the_shares_of_all_processes_make_the_whole(opened, world, train, n):
    whole = opened(n, 6, train=train, augmented=train)
    parts = [opened(n, 6, train=train, augmented=train, share=Share(rank, world)) for rank in range(world)]
    assert {(len(part), part.count) for part in parts} == {(len(whole), whole.count)}
    if train:  # Every image is in its batch, in its place and with its augmentation.
        for (images, labels), *shares in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([images for images, _ in shares]), images)
            assert torch.equal(torch.cat([labels for _, labels in shares]), labels)
    else:
        assert sorted(chain(*chain(*map(labels_of, parts)))) == [*range(n)]


def test_no_batch_is_empty(opened):
    assert labels_of(opened(7, 6, share=Share(0, 2))) == [[0, 1, 2]]
    assert labels_of(opened(7, 6, share=Share(1, 2))) == [[3, 4, 5], [6]]


REFUSED = [  # options of 9 images in batches of a size -> words in the message
    (10, dict(train=True), "batch_size=10 is more than the 9 training images"),
    (8, dict(train=True, share=Share(0, 3)), "batch_size=8 cannot be shared evenly by 3 processes"),
    (8, dict(workers=-1), "workers=-1 is out of range: expected 0 to 1024"),
    (8, dict(workers=10**6), "workers=1000000 is out of range: expected 0 to 1024"),
    (8, dict(augmented=True), "augment is for training images: expected train=True"),
]


@pytest.mark.parametrize(("size", "options", "words"), REFUSED)
def test_wrong_arguments_are_refused(opened, size, options, words):
    with pytest.raises(ValueError, match=words):
        opened(9, size, **options)


def test_augmentations_of_another_kind_are_refused():
    decoded = Split(torch.zeros(8, 3, 4, 4), torch.arange(8))
    assert type(open_batches(decoded, 4, workers=3)) is Batches
    for split, augment, words in (
        (decoded, RandomResizedCrop(), "images in memory take an Augmentation, got a RandomResizedCrop"),
        (decoded, Augmentation(), "uint8 images with their normalization, got torch.flo"),
        (
            StreamedSplit("files", Files(8), 8, NORMALIZATION),
            Augmentation(),
            "streamed images take a RandomResizedCrop, got an Augmentation",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            open_batches(split, 4, train=True, augment=augment)


# Images in memory


def test_batches_hold_a_crop_of_the_image_of_each_label():
    data, augment = in_memory(11), Augmentation(1)
    crops = torch.tensor([[y, x, m] for y in range(3) for x in range(3) for m in range(2)]).T
    for images, labels in Batches(data, 3, train=True, augment=augment):
        for image, label in zip(images, labels, strict=True):
            every = NORMALIZATION(augment.apply(data.pixels[label].expand(18, -1, -1, -1), crops))
            assert (every == image).flatten(1).all(1).any()


def test_augmentation_keeps_the_order():
    """Compare the first epoch: runs with and without augmentation have the same order."""
    plain, augmented = (Batches(in_memory(40), 8, train=True, augment=augment) for augment in (None, Augmentation()))
    assert labels_of(plain) == labels_of(augmented)


def test_without_augmentation_uint8_and_float_give_the_same_batches():
    data = in_memory(10)
    ready = Split(data.images, data.labels)
    for train in (False, True):
        assert_equal(everything(Batches(data, 5, train=train)), everything(Batches(ready, 5, train=train)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_images():
    here, there = (
        Batches(in_memory(40), 8, train=True, augment=Augmentation(), device=device) for device in ("cpu", "cuda")
    )
    for (ours, labels), (theirs, their_labels) in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)
        assert torch.equal(their_labels.cpu(), labels)

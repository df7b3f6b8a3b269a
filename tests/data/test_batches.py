"""Batches: every image in its place, orders that can be continued, the memory format asked for."""

from itertools import chain

import pytest
import torch

from torchadder.data import Batches, Share, Split
from torchadder.errors import UserError


def numbered(n):
    """A split whose images carry their index."""
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
    with pytest.raises(UserError, match="batch_size 9 is more than the 8 training images"):
        Batches(numbered(8), 9, train=True)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n", [12, 13, 23])
def test_the_shares_of_all_processes_are_the_whole(world, train, n):
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


def test_processes_share_a_training_batch_evenly_or_are_refused():
    with pytest.raises(UserError, match="batch_size 8 cannot be shared evenly by 3 processes"):
        Batches(numbered(9), 8, train=True, share=Share(0, 3))

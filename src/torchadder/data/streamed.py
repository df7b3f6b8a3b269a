"""Batches of a split that streams: worker processes read and decode the images, a few batches ahead at most."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchadder.data.augment import Augmentation, RandomResizedCrop, centre_crop
from torchadder.data.batches import WHOLE, Batches, Loader, Share
from torchadder.data.pixels import Damaged, cropped, listed, load_pillow, reason_of
from torchadder.data.registry import Split, StreamedSplit
from torchadder.environment import available_cores
from torchadder.errors import UserError

PART = 32  # images that a worker decodes in a row; small, so that many workers do not hold many batches
AHEAD = 2  # parts that each worker may be ahead
TRIES = 100  # images that are tried in place of a damaged one
MAX_WORKERS = 8  # by default


def open_batches(
    split: Split | StreamedSplit,
    batch_size: int,
    *,
    train: bool = False,
    augment: Augmentation | RandomResizedCrop | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    share: Share = WHOLE,
    workers: int | None = None,
) -> Loader:
    """The Loader of a split, wherever it is: see Batches and StreamedBatches, which alone has ``workers``.

    Raises what these do, and ValueError for an augmentation of the other kind.
    """
    common: Any = dict(train=train, seed=seed, device=device, memory_format=memory_format, share=share)
    if isinstance(split, Split):
        if isinstance(augment, RandomResizedCrop):
            raise ValueError("images in memory take an Augmentation, got a RandomResizedCrop")
        return Batches(split, batch_size, augment=augment, **common)
    if isinstance(augment, Augmentation):
        raise ValueError("streamed images take a RandomResizedCrop, got an Augmentation")
    return StreamedBatches(split, batch_size, augment=augment, workers=workers, **common)


def default_workers() -> int:
    """One a processor that this process may use, its share of them where several run on the machine; at most 8."""
    return max(1, min(MAX_WORKERS, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class StreamedBatches(Loader):
    """A Loader of a split that streams, with ``workers`` processes (default default_workers; 0: this process decodes).

    ``augment`` crops the training images, otherwise it is the centre crop of the test. Order and crops follow from
    the seed, the number of the iteration and that of the image alone: not from the number of workers or processes.
    Workers start with the first iteration and stay; there is one iteration at a time.

    An image that cannot be used stops the iteration with UserError, or the next one of the split stands in for it;
    the iteration then ends with a line on stderr that counts and names them.

    Raises UserError as Loader, and where Pillow is missing; ValueError for ``augment`` without ``train``.
    """

    def __init__(
        self,
        split: StreamedSplit,
        batch_size: int,
        *,
        train: bool = False,
        augment: RandomResizedCrop | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
        share: Share = WHOLE,
        workers: int | None = None,
    ):
        super().__init__(len(split), batch_size, train=train, device=device, memory_format=memory_format, share=share)
        if augment is not None and not train:
            raise ValueError("augment is for training images: expected train=True with it")
        load_pillow()
        self._split = split
        self._normalize = split.normalization.to(device)
        self._order = _Order(len(split), list(self.parts()), seed if train else None)
        workers = default_workers() if workers is None else workers
        self._decoded = DataLoader(
            _Decoder(split, augment, seed),
            batch_size=None,  # a request is for a part already
            sampler=self._order,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        decoded = iter(self._decoded)
        self._order.epoch += 1
        damaged: dict[str, Damaged] = {}
        for part in self.parts():
            shape = (part.stop - part.start, 3, self._split.size, self._split.size)
            images = torch.empty(shape, device=self.device, memory_format=self.memory_format)
            labels = torch.empty(shape[0], dtype=torch.int64, device=self.device)
            for start in range(0, shape[0], PART):
                piece = self._next(decoded)
                damaged |= {image.path: image for image in piece.damaged}
                place = slice(start, start + PART)
                pixels = torch.from_numpy(piece.pixels).to(self.device)  # bytes travel, a quarter of what they become
                self._normalize.in_place(images[place].copy_(pixels))
                labels[place].copy_(torch.from_numpy(piece.labels))
            yield images, labels
        if damaged:
            count = f"{len(damaged):,} of {len(self._split):,} images cannot be used: {listed(damaged.values())}"
            print(f"{self._split.title}: {count}; the next ones stood in", file=sys.stderr, flush=True)

    def _next(self, decoded: Iterator[_Decoded]) -> _Decoded:
        try:
            piece = next(decoded)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            cause = " ".join(str(error).split())
            raise UserError(f"a process that decodes images ended: {cause} Try fewer with --workers") from error
        if not piece.complete:
            if self._split.on_error == "stop":
                raise UserError(
                    f"{self._split.title}: {listed(piece.damaged)} cannot be used; replace it, or go on without such "
                    "images with --on-error skip"
                )
            tried = f"{min(TRIES, len(self._split))} images in a row"
            raise UserError(f"{self._split.title}: {tried} cannot be used: {listed(piece.damaged)}")
        return piece

    def state_dict(self) -> dict[str, Any]:
        """The number of iterations that were begun."""
        return {"epoch": self._order.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.epoch = state["epoch"]


class _Request(NamedTuple):
    epoch: int
    indices: list[int]


class _Decoded(NamedTuple):
    """Images uint8 (n, 3, size, size) and labels int64 (n,), unless not ``complete``; and what could not be used.

    Arrays, which go through a pipe. Tensors would go through shared memory, where containers have little of it;
    and torch's record of those that were received keeps glibc before 2.38 from using freed memory again.
    """

    pixels: np.ndarray
    labels: np.ndarray
    damaged: list[Damaged]
    complete: bool


def _as_it_is(piece: Any) -> Any:
    return piece


class _Order:
    """The requests of iteration ``epoch``, in order; a permutation by ``seed``, or without one the split's order."""

    def __init__(self, size: int, parts: list[slice], seed: int | None):
        self.size, self.batch_parts, self.seed = size, parts, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[_Request]:
        return self._requests(self.epoch)

    def _requests(self, epoch: int) -> Iterator[_Request]:
        order = torch.arange(self.size)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(random.Random(f"{self.seed},{epoch}").getrandbits(63))
            order = torch.randperm(self.size, generator=generator)
        for part in self.batch_parts:
            for indices in order[part].split(PART):
                yield _Request(epoch, indices.tolist())


class _Decoder(Dataset[_Decoded]):
    """What runs in a worker: the images of a request."""

    def __init__(self, split: StreamedSplit, augment: RandomResizedCrop | None, seed: int):
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, request: _Request) -> _Decoded:
        count, size = len(request.indices), self.split.size
        pixels, labels = np.empty((count, 3, size, size), np.uint8), np.empty(count, np.int64)
        damaged: list[Damaged] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata that nobody asked for
            complete = all(self._fill(pixels, labels, i, request, damaged) for i in range(count))
        return _Decoded(pixels, labels, damaged, complete)

    def _fill(
        self, pixels: np.ndarray, labels: np.ndarray, place: int, request: _Request, damaged: list[Damaged]
    ) -> bool:
        """Decode the image of that place, or the next one that can be used; whether there was one."""
        image, source, wanted = load_pillow(), self.split.source, request.indices[place]

        def crop(width: int, height: int) -> Any:
            if self.augment is None:
                return centre_crop(width, height)
            return self.augment.draw(width, height, random.Random(f"{self.seed},{request.epoch},{wanted}"))

        tries = min(TRIES, len(self.split)) if self.split.on_error == "skip" else 1
        for offset in range(tries):
            index = (wanted + offset) % len(self.split)
            try:
                pixels[place] = cropped(image, source.read(index), crop, self.split.size)
            except Exception as error:  # a damaged image fails in every way there is
                damaged.append(Damaged(source.name(index), reason_of(error)))
                continue
            labels[place] = source.labels[index]
            return True
        return False

"""Serve batches of a streamed split: worker processes read and decode the images, a few batches ahead at most."""

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

from torchadder.data.images import (
    Augmentation,
    Crop,
    Damaged,
    RandomResizedCrop,
    centre_crop,
    decode_crop,
    error_reason,
    list_damaged,
    load_pillow,
)
from torchadder.data.loader import WHOLE, Batches, Loader, Share
from torchadder.data.registry import Split, StreamedSplit
from torchadder.environment import available_cores
from torchadder.errors import UserError

ALLOWED_WORKERS = 1024  # A mistyped number must not fill the machine.
PART = 32  # Images of one request to a worker; few, so that many workers together do not hold many batches.
PREFETCH = 2  # Requests that each worker decodes in advance.
MAX_TRIES = 100  # Images tried in place of a damaged one.
MAX_WORKERS = 8  # The largest default.


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
    """Return the loader of a split: Batches for one in memory, StreamedBatches with ``workers`` for a streamed one.

    Raises what these raise, UserError for workers out of range, ValueError for an augmentation of the other kind.
    """
    if workers is not None and not 0 <= workers <= ALLOWED_WORKERS:
        raise UserError(f"workers={workers} is out of range: expected 0 to {ALLOWED_WORKERS}")
    common: Any = dict(train=train, seed=seed, device=device, memory_format=memory_format, share=share)
    if isinstance(split, Split):
        if isinstance(augment, RandomResizedCrop):
            raise ValueError("images in memory take an Augmentation, got a RandomResizedCrop")
        return Batches(split, batch_size, augment=augment, **common)
    if isinstance(augment, Augmentation):
        raise ValueError("streamed images take a RandomResizedCrop, got an Augmentation")
    return StreamedBatches(split, batch_size, augment=augment, workers=workers, **common)


def default_workers() -> int:
    """Return the number of cores of this process, divided by the processes of torchrun on this machine; at most 8."""
    return max(1, min(MAX_WORKERS, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class StreamedBatches(Loader):
    """Serve a streamed split with ``workers`` processes (default: default_workers(); 0 decodes in this process).

    ``augment`` crops the training images; without it the centre of an image is used. Order and crops depend only on the
    seed, the epoch and the index of the image, not on the number of workers or processes. Workers start with the
    first iteration and stay; one iteration can run at a time.

    With the split's on_error "stop", an image that cannot be used raises UserError; with "skip", the next image of the
    split replaces it, and the iteration ends with a line on stderr that names such images.

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
        self._order = _RequestSampler(len(split), list(self.parts()), seed if train else None)
        workers = default_workers() if workers is None else workers
        self._decoded = DataLoader(
            _Decoder(split, augment, seed),
            batch_size=None,  # A request is a batch already.
            sampler=self._order,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            collate_fn=_identity,
            generator=torch.Generator(),  # Without one, DataLoader draws from the global generator.
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        decoded = iter(self._decoded)
        self._order.epoch += 1
        damaged: dict[str, Damaged] = {}
        for part in self.parts():
            shape = (part.stop - part.start, 3, self._split.size, self._split.size)
            images = torch.empty(shape, dtype=torch.float32, device=self.device, memory_format=self.memory_format)
            labels = torch.empty(shape[0], dtype=torch.int64, device=self.device)
            for start in range(0, shape[0], PART):
                piece = self._next(decoded)
                damaged |= {image.path: image for image in piece.damaged}
                place = slice(start, start + PART)
                pixels = torch.from_numpy(piece.pixels).to(self.device)  # uint8 is a quarter of float32 to transfer.
                self._normalize.in_place(images[place].copy_(pixels))
                labels[place].copy_(torch.from_numpy(piece.labels))
            yield images, labels
        if damaged:
            count = f"{len(damaged):,} of {len(self._split):,} images cannot be used: {list_damaged(damaged.values())}"
            print(f"{self._split.title}: {count}; replaced by the next ones", file=sys.stderr, flush=True)

    def _next(self, decoded: Iterator[_Decoded]) -> _Decoded:
        try:
            piece = next(decoded)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            cause = " ".join(str(error).split())
            raise UserError(f"a process that decodes images ended: {cause} Try fewer, workers=1 for example") from error
        if not piece.complete:
            if self._split.on_error == "stop":
                raise UserError(
                    f"{self._split.title}: {list_damaged(piece.damaged)} cannot be used; replace it, or leave such "
                    "images out with on_error=skip"
                )
            tried = f"{min(MAX_TRIES, len(self._split))} images in a row"
            raise UserError(f"{self._split.title}: {tried} cannot be used: {list_damaged(piece.damaged)}")
        return piece

    def state_dict(self) -> dict[str, Any]:
        """Return the number of iterations begun."""
        return {"epoch": self._order.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.epoch = state["epoch"]


class _Request(NamedTuple):
    """Ask a worker for the images ``indices`` in iteration ``epoch``."""

    epoch: int
    indices: list[int]


class _Decoded(NamedTuple):
    """Hold images uint8 (n, 3, size, size), labels int64 (n,), valid where ``complete``, and the damaged images.

    NumPy arrays go through a pipe. Tensors would go through shared memory, of which containers have little; and
    torch's record of received tensors keeps glibc before 2.38 from reusing freed memory.
    """

    pixels: np.ndarray
    labels: np.ndarray
    damaged: list[Damaged]
    complete: bool


def _identity(piece: Any) -> Any:
    return piece


class _RequestSampler:
    """Iterate over the requests of iteration ``epoch``: permuted by ``seed``, or without one in the split's order."""

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
    """Read and decode the images of a request, in a worker."""

    def __init__(self, split: StreamedSplit, augment: RandomResizedCrop | None, seed: int):
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, request: _Request) -> _Decoded:
        count, size = len(request.indices), self.split.size
        pixels, labels = np.empty((count, 3, size, size), np.uint8), np.empty(count, np.int64)
        damaged: list[Damaged] = []
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about metadata, which is not used here.
            complete = all(self._fill(pixels, labels, i, request, damaged) for i in range(count))
        return _Decoded(pixels, labels, damaged, complete)

    def _fill(
        self, pixels: np.ndarray, labels: np.ndarray, place: int, request: _Request, damaged: list[Damaged]
    ) -> bool:
        """Decode an image into its place, or the next one that can be used; return False where there is none."""
        pillow, source, wanted = load_pillow(), self.split.source, request.indices[place]

        def crop(width: int, height: int) -> Crop:
            if self.augment is None:
                return centre_crop(width, height)
            return self.augment.draw(width, height, random.Random(f"{self.seed},{request.epoch},{wanted}"))

        tries = min(MAX_TRIES, len(self.split)) if self.split.on_error == "skip" else 1
        for offset in range(tries):
            index = (wanted + offset) % len(self.split)
            try:
                pixels[place] = decode_crop(pillow, source.read(index), crop, self.split.size)
            except Exception as error:  # Pillow raises many types for damaged images.
                damaged.append(Damaged(source.name(index), error_reason(error)))
                continue
            labels[place] = source.labels[index]
            return True
        return False

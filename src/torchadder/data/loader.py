"""Serve batches of a split: the interface of all loaders, and the loader of a split in memory on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchadder.data.images import Augmentation
from torchadder.data.registry import Split
from torchadder.errors import UserError


class Share(NamedTuple):
    """Select the part of every batch that one of ``world`` processes takes: contiguous, in the order of ranks."""

    rank: int = 0
    world: int = 1

    def of(self, start: int, stop: int) -> slice:
        """Return the part of the images start..stop that belongs to this process."""
        count = stop - start
        return slice(start + count * self.rank // self.world, start + count * (self.rank + 1) // self.world)


WHOLE = Share()


class Loader(ABC):
    """Iterate over (images float32 (B, C, H, W), labels int64 (B,)) of a split of ``size`` images, on ``device``.

    With ``train`` the order is shuffled in each iteration, and the last partial batch is dropped, as in the paper's
    recipe. Without it the order is the split's, and every image comes once. ``batch_size`` counts the images of all
    processes together; this loader serves its ``share`` of each batch. ``memory_format`` is that of the images.

    Raises UserError when ``train`` is set and the split is smaller than a batch, or the processes cannot share a
    batch evenly.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        train: bool,
        device: torch.device | str,
        memory_format: torch.memory_format,
        share: Share,
    ):
        if train and size < batch_size:
            raise UserError(f"batch_size={batch_size} is more than the {size} training images; choose a smaller one")
        if train and batch_size % share.world:
            raise UserError(
                f"batch_size={batch_size} cannot be shared evenly by {share.world} processes: choose a multiple"
            )
        self.size, self.batch_size, self.train = size, batch_size, train
        self.device, self.memory_format, self.share = torch.device(device), memory_format, share

    def __len__(self) -> int:
        return self.size // self.batch_size if self.train else -(-self.size // self.batch_size)

    @property
    def count(self) -> int:
        """Return the number of images in one iteration, those of other processes included."""
        return len(self) * self.batch_size if self.train else self.size

    def parts(self) -> Iterator[slice]:
        """Iterate over this process's part of each batch, as positions in the order of an iteration."""
        for start in range(0, self.count, self.batch_size):
            part = self.share.of(start, min(start + self.batch_size, self.count))
            if part.start < part.stop:  # A last batch may have fewer images than there are processes.
                yield part

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state from which later iterations have the same orders and augmentations."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Batches(Loader):
    """Serve a split in memory: it is copied to ``device`` once, and each batch is indexed and augmented there.

    A generator that starts from ``seed`` decides the order, and the choices of ``augment``, which changes the training
    images in each iteration. A seed gives the same batches on every device.

    Raises UserError as Loader, and ValueError for ``augment`` without ``train``, or with black 0 for float images:
    these are normalised already, and their black is another number.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
        share: Share = WHOLE,
    ):
        super().__init__(len(split), batch_size, train=train, device=device, memory_format=memory_format, share=share)
        if augment is not None and not train:
            raise ValueError("augment is for training images: expected train=True with it")
        if augment is not None and augment.black == 0 and split.normalization is None:
            raise ValueError(f"augment takes uint8 images with their normalization, got {split.pixels.dtype} without")
        self.pixels = split.pixels.to(device)
        self.labels = split.labels.to(device)
        self._augment = augment
        self._normalize = split.normalization and split.normalization.to(device)
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, order, choices = self.device, None, None
        if self.train:
            order = torch.randperm(len(self.labels), generator=self._generator).to(device)
        if self._augment is not None:  # Drawn for the whole epoch, so that later ones are the same if it is left early.
            choices = self._augment.draw(len(self.labels), self._generator).to(device)
        for part in self.parts():
            chosen = part if order is None else order[part]
            images, labels = self.pixels[chosen], self.labels[chosen]
            if self._augment is not None and choices is not None:
                images = self._augment.apply(images, choices[:, part])
            if self._normalize is not None:
                images = self._normalize(images)
            yield images.contiguous(memory_format=self.memory_format), labels

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])

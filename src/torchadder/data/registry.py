"""The data sets by name: each a pair of splits, whole in memory or streamed from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchadder.data.augment import Augmentation, RandomResizedCrop
from torchadder.errors import UserError


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel of an image whose pixels are 0 to 1: float32 (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """From one number a channel."""
        return cls(*(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)))

    def to(self, device: torch.device | str) -> Normalization:
        """The same on ``device``."""
        return Normalization(self.mean.to(device), self.std.to(device))

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 (N, C, H, W), (pixels / 255 - mean) / std, from uint8."""
        return self.in_place(pixels.to(torch.float32, copy=True))

    def in_place(self, pixels: Tensor) -> Tensor:
        """The same from float32, whose pixels are 0 to 255, and in their place."""
        return pixels.div_(255).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) and labels int64 (N,).

    ``pixels`` are float32 as the network sees them, or uint8 together with the ``normalization`` that makes them so:
    a quarter of the memory, and crops can be padded with black.
    """

    pixels: Tensor
    labels: Tensor
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images as the network sees them, float32 (N, C, H, W)."""
        return self.pixels if self.normalization is None else self.normalization(self.pixels)


class Source(Protocol):
    """Image files that are read one by one. It is passed to worker processes: picklable, and small in memory.

    ``labels``: int64 (N,).
    """

    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """The content of an image file. Raises OSError where it cannot be read."""

    def name(self, index: int) -> str:
        """What to call it in a message."""


@dataclass(frozen=True)
class StreamedSplit:
    """Images that are read and decoded when their turn comes, to uint8 (3, ``size``, ``size``), then normalised.

    ``title``: what to call it in a message. ``on_error``: "stop" at an image that does not decode, or "skip" it.
    """

    title: str
    source: Source
    size: int
    normalization: Normalization
    on_error: str = "stop"

    def __len__(self) -> int:
        return len(self.source.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set: its name, what a model needs to know about it, its two splits, and how to augment the first.

    The splits are both in memory with an Augmentation, or both streamed with a RandomResizedCrop; or without either.
    ``classes``: the names of the classes by label, where they have any. ``normalization``: how the pixels were
    normalised, 0 to 1 before, where they are float32.
    """

    name: str
    num_classes: int
    in_chans: int
    train: Split | StreamedSplit
    test: Split | StreamedSplit
    augmentation: Augmentation | RandomResizedCrop | None = None
    classes: Sequence[str] = ()
    normalization: Normalization | None = None

    @classmethod
    def streamed(
        cls,
        name: str,
        num_classes: int,
        train: Source,
        test: Source,
        *,
        size: int,
        normalization: Normalization,
        on_error: str,
        classes: Sequence[str] = (),
    ) -> Dataset:
        """One of colour images that stream; see StreamedSplit. Raises UserError for a label out of range."""
        title = name.partition(",")[0]
        for source in (train, test):
            if (wrong := np.flatnonzero((source.labels < 0) | (source.labels >= num_classes))).size:
                label = f"the label of {source.name(int(wrong[0]))} is {source.labels[wrong[0]]}"
                raise UserError(f"{title}: {label}, expected 0 to {num_classes - 1}")
        first, second = (StreamedSplit(title, source, size, normalization, on_error) for source in (train, test))
        return cls(name, num_classes, 3, first, second, RandomResizedCrop(), classes)


LoadFunction = TypeVar("LoadFunction", bound=Callable[..., Dataset])

_DATASETS: dict[str, Callable[..., Dataset]] = {}
_OPTIONS: dict[str, tuple[str, ...]] = {}


def register(name: str, *, options: tuple[str, ...] = ()) -> Callable[[LoadFunction], LoadFunction]:
    """Register ``load(data_dir)`` under ``name``; data_dir is what the user passed as --data, or None.

    A name such as "imagefolder:DIR" stands for all that begin with "imagefolder:"; the rest of the name is then the
    first argument, before data_dir. ``options``: the options of load_dataset that load takes, as keywords.
    """

    def decorate(load: LoadFunction) -> LoadFunction:
        if name in _DATASETS:
            raise ValueError(f"data set {name!r} is registered twice")
        _DATASETS[name] = load
        _OPTIONS[name] = options
        return load

    return decorate


def list_datasets() -> list[str]:
    """The names that load_dataset knows, sorted."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: Path | None = None, *, partial: bool = False, on_error: str = "stop") -> Dataset:
    """Load a data set by name, from ``data_dir`` or where its own search finds it.

    ``partial``: accept files of its format that are not the published ones, because they hold only a part.
    ``on_error``: "stop", or "skip" to leave out images that do not decode, which are then counted and named on stderr.

    Raises UserError for an unknown name, for files that are missing, unreadable or not the published ones, for
    ``partial`` with a data set that is read whole or not at all, and for "skip" with one that is not decoded.
    """
    if on_error not in ("stop", "skip"):
        raise UserError(f"--on-error {on_error} is unknown: expected stop or skip")
    kind, colon, rest = name.partition(":")
    registered = next((known for known in _DATASETS if colon and rest and known.startswith(kind + colon)), name)
    arguments = [rest] if colon else []
    if registered not in _DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(list_datasets())}")
    options: dict[str, Any] = {}
    if partial:
        options["partial"] = True
    if on_error != "stop":
        options["on_error"] = on_error
    for option in options:
        if option not in _OPTIONS.get(registered, ()):
            raise UserError(f"{name} {_REFUSED[option]}")
    return _DATASETS[registered](*arguments, data_dir, **options)


_REFUSED = {
    "partial": "is read whole or not at all; leave --partial out",
    "on_error": "has no images to decode; leave --on-error out",
}

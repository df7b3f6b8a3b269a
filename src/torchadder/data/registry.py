"""Load data sets by name: the registry, the types of a data set, and the options of names such as "wds:SHARDS"."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchadder.data.images import Augmentation, RandomResizedCrop
from torchadder.errors import UserError

SIZE = 224  # Default height and width of streamed images.
MAX_SIZE = 4096


class Normalization(NamedTuple):
    """Hold mean and standard deviation of each channel, for pixels from 0 to 1: float32 (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """Make a Normalization from one number for each channel."""
        return cls(*(torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1) for values in (mean, std)))

    def to(self, device: torch.device | str) -> Normalization:
        """Return it on ``device``."""
        return Normalization(self.mean.to(device), self.std.to(device))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std, float32 (N, C, H, W), from uint8."""
        return self.in_place(pixels.to(torch.float32, copy=True))

    def in_place(self, pixels: Tensor) -> Tensor:
        """Normalise float32 ``pixels`` from 0 to 255 in place, and return them."""
        return pixels.div_(255).sub_(self.mean).div_(self.std)


NORMALIZATIONS = {  # Published statistics.
    "imagenet": Normalization.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": Normalization.of((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


@dataclass(frozen=True)
class Split:
    """Hold images in memory, (N, C, H, W), and their labels, int64 (N,).

    ``pixels`` are float32 as the network takes them, or uint8, which ``normalization`` converts to that. uint8 takes a
    quarter of the memory, and augmentation can pad it with black.
    """

    pixels: Tensor
    labels: Tensor
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """Return all images as the network takes them, float32 (N, C, H, W)."""
        return self.pixels if self.normalization is None else self.normalization(self.pixels)


class Source(Protocol):
    """Read image files one by one. Worker processes get a copy: it is picklable and small in memory.

    ``labels``: int64 (N,).
    """

    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """Return the content of an image file. Raises OSError where it cannot be read."""

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""


class PackedNames:
    """Store many strings as one: a million short names take 30 MB, as str objects ten times that in every worker."""

    def __init__(self, names: Iterable[str]):
        joined, ends = bytearray(), [0]
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self._joined, self._ends = bytes(joined), np.array(ends, np.int64)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._joined[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class StreamedSplit:
    """Hold a source of images that are read when needed, decoded to uint8 (3, ``size``, ``size``) and normalised.

    ``title``: its name in messages. ``on_error``: "stop" at an image that cannot be decoded, or "skip" it.
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
    """Hold the two splits of a data set, and what a model and its training need to know about it.

    Both splits are in memory, with an Augmentation or none, or both are streamed, with a RandomResizedCrop or none.
    ``classes``: names of the classes by label; empty where unknown. ``normalization``: how float32 pixels
    were normalised, where that is known.
    """

    name: str
    num_classes: int
    in_chans: int
    train: Split | StreamedSplit
    test: Split | StreamedSplit
    augmentation: Augmentation | RandomResizedCrop | None = None
    classes: Sequence[str] = ()
    normalization: Normalization | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of an image."""
        if isinstance(self.test, Split):
            return self.in_chans, self.test.pixels.shape[2], self.test.pixels.shape[3]
        return self.in_chans, self.test.size, self.test.size

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
        """Make a streamed data set of colour images; see StreamedSplit. Raises UserError for a label out of range."""
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
_REFUSED = {
    "partial": "is read whole or not at all; leave partial=True out",
    "on_error": "has no images to decode; leave on_error=skip out",
}


def register(name: str, *, options: tuple[str, ...] = ()) -> Callable[[LoadFunction], LoadFunction]:
    """Return a decorator that registers ``load(data_dir)`` under ``name``; ``data_dir`` is a Path or None.

    A name such as "imagefolder:DIR" stands for all that begin with "imagefolder:"; the rest of the name is then the
    first argument of load, before data_dir. ``options``: the options of load_dataset that load takes as keywords.
    """

    def decorate(load: LoadFunction) -> LoadFunction:
        if name in _DATASETS:
            raise ValueError(f"data set {name!r} is registered twice")
        _DATASETS[name] = load
        _OPTIONS[name] = options
        return load

    return decorate


def list_datasets() -> list[str]:
    """Return the names that load_dataset knows, sorted."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: Path | None = None, *, partial: bool = False, on_error: str = "stop") -> Dataset:
    """Load a data set by name.

    Args:
        name: one of list_datasets(), with DIR, NAME or SHARDS replaced.
        data_dir: the folder with its files; None searches TORCHADDER_DATA and the cache, then fetches.
        partial: accept files that hold only a part of the published images.
        on_error: "stop" at an image that cannot be decoded, or "skip" it; skipped ones are named on stderr.

    Raises UserError for an unknown name, for files that are missing, unreadable or not the published ones, and for
    ``partial`` or "skip" with a data set that does not have that option.
    """
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error={on_error} is unknown: expected stop or skip")
    kind, colon, rest = name.partition(":")
    registered = next((known for known in _DATASETS if colon and rest and known.startswith(kind + colon)), name)
    arguments = [rest] if colon else []
    if registered not in _DATASETS:
        raise UserError(f"dataset={name} is unknown: expected one of {', '.join(list_datasets())}")
    options: dict[str, Any] = {}
    if partial:
        options["partial"] = True
    if on_error != "stop":
        options["on_error"] = on_error
    for option in options:
        if option not in _OPTIONS.get(registered, ()):
            raise UserError(f"{name} {_REFUSED[option]}")
    dataset = _DATASETS[registered](*arguments, data_dir, **options)
    if dataset.num_classes < 2:
        raise UserError(f"{name} has one class, and every network answers it right: add the images of another class")
    return dataset


def parse_name(kind: str, argument: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split "NAME,size=224,normalize=cifar" into the name and its options; commas inside braces do not split.

    ``kind`` stands before the argument in messages. Raises UserError for an option that is not ``known``.
    """
    name, *options = re.split(r",(?![^{}]*\})", argument)
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in known or not value or key in values:
            expected = ", ".join(f"{key}=..." for key in known)
            raise UserError(f"{kind}:{argument}: {option!r} is unknown or there twice, expected {expected} or nothing")
        values[key] = value
    return name, values


def size_option(options: Mapping[str, str]) -> int:
    """Return the option size=, the height and width of the images that the network takes."""
    return integer_option(options, "size", low=1, high=MAX_SIZE) or SIZE


def normalization_option(options: Mapping[str, str]) -> Normalization:
    """Return the option normalize=: the name of published statistics, MEAN/STD, or three means and three deviations."""
    name = options.get("normalize", "imagenet")
    if name in NORMALIZATIONS:
        return NORMALIZATIONS[name]
    try:
        numbers = [float(number) for number in name.split("/")]
        mean, std = {2: (numbers[:1] * 3, numbers[1:] * 3), 6: (numbers[:3], numbers[3:])}[len(numbers)]
        if not all(0 <= number <= 1 for number in numbers) or min(std) == 0:
            raise ValueError
    except (ValueError, KeyError):
        known = ", ".join(NORMALIZATIONS)
        raise UserError(f"normalize={name} is unknown: expected {known}, or MEAN/STD of pixels from 0 to 1") from None
    return Normalization.of(mean, std)


def integer_option(options: Mapping[str, str], key: str, *, low: int, high: int) -> int | None:
    """Return the integer of an option, or None where it is not given. Raises UserError outside low..high."""
    text = options.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{key}={text} is out of range: expected {low} to {high}")
    return int(text)

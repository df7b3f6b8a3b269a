"""The data sets by name: each a pair of splits, whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchadder.data.augment import Augmentation
from torchadder.errors import UserError


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel of an image whose pixels are 0 to 1: float32 (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """From one number a channel."""
        return cls(*(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)))

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 (N, C, H, W), (pixels / 255 - mean) / std, from uint8."""
        return pixels.div(255).sub_(self.mean).div_(self.std)


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


@dataclass(frozen=True)
class Dataset:
    """A data set: its name, what a model needs to know about it, its two splits, and how to augment the first."""

    name: str
    num_classes: int
    in_chans: int
    train: Split
    test: Split
    augmentation: Augmentation | None = None


LoadFunction = TypeVar("LoadFunction", bound=Callable[..., Dataset])

_DATASETS: dict[str, Callable[..., Dataset]] = {}
_OPTIONS: dict[str, tuple[str, ...]] = {}
_OF_A_FOLDER = ":DIR"


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
    registered, arguments = (kind + _OF_A_FOLDER, [rest]) if colon else (name, [])
    if registered not in _DATASETS or (colon and not rest):
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

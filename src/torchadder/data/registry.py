"""The data sets by name: each a pair of splits, whole in memory, already normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from torchadder.errors import UserError


@dataclass(frozen=True)
class Split:
    """Images float32 (N, C, H, W), normalised, and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set: its name, what a model needs to know about it, and its two splits."""

    name: str
    num_classes: int
    in_chans: int
    train: Split
    test: Split


_DATASETS: dict[str, Callable[..., Dataset]] = {}
_PARTIAL: set[str] = set()

LoadFunction = TypeVar("LoadFunction", bound=Callable[..., Dataset])


def register(name: str, *, partial: bool = False) -> Callable[[LoadFunction], LoadFunction]:
    """Register ``load(data_dir)`` under ``name``; data_dir is what the user passed as --data, or None.

    ``partial``: load takes the keyword ``partial`` too, with which it accepts files of fewer images.
    """

    def decorate(load: LoadFunction) -> LoadFunction:
        if name in _DATASETS:
            raise ValueError(f"data set {name!r} is registered twice")
        _DATASETS[name] = load
        if partial:
            _PARTIAL.add(name)
        return load

    return decorate


def list_datasets() -> list[str]:
    """The names that load_dataset knows, sorted."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: Path | None = None, *, partial: bool = False) -> Dataset:
    """Load a data set by name, from ``data_dir`` or where its own search finds it.

    ``partial``: accept files of its format that are not the published ones, because they hold only a part.

    Raises UserError for an unknown name, for files that are missing, unreadable or not the published ones, and
    for ``partial`` with a data set that is read whole or not at all.
    """
    if name not in _DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(list_datasets())}")
    if not partial:
        return _DATASETS[name](data_dir)
    if name not in _PARTIAL:
        raise UserError(f"{name} is read whole or not at all; leave --partial out")
    return _DATASETS[name](data_dir, partial=True)

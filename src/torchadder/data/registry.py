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


_DATASETS: dict[str, Callable[[Path | None], Dataset]] = {}

LoadFunction = TypeVar("LoadFunction", bound=Callable[[Path | None], Dataset])


def register(name: str) -> Callable[[LoadFunction], LoadFunction]:
    """Register ``load(data_dir)`` under ``name``; data_dir is what the user passed as --data, or None."""

    def decorate(load: LoadFunction) -> LoadFunction:
        if name in _DATASETS:
            raise ValueError(f"data set {name!r} is registered twice")
        _DATASETS[name] = load
        return load

    return decorate


def list_datasets() -> list[str]:
    """The names that load_dataset knows, sorted."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set by name, from ``data_dir`` or where its own search finds it.

    Raises UserError for an unknown name and for files that are missing, unreadable or not the published ones.
    """
    if name not in _DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(list_datasets())}")
    return _DATASETS[name](data_dir)

"""A tree of image files, SPLIT/CLASS/NAME: what is in it, and its files as a source of images that stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from torchadder.data.names import Names
from torchadder.data.pixels import EXTENSIONS
from torchadder.errors import UserError


def classes_of(train: Path) -> list[str]:
    """The subfolders of the training images, sorted. Raises UserError where there are none."""
    if not train.is_dir():
        raise UserError(f"{train} is no folder: put the training images into {train}/CLASS/")
    if classes := sorted(entry.name for entry in _entries(train) if entry.is_dir()):
        return classes
    raise UserError(f"{train} has no subfolders: expected one for each class, with its images")


def files_of(folder: Path, split: str, classes: Sequence[str]) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """Label and entry of each image file of a split, sorted by class and name.

    Raises UserError for a class that is not one of ``classes``, for one without images, and where there are none.
    """
    found = sorted(entry.name for entry in _entries(folder / split) if entry.is_dir())
    if unknown := sorted({*found} - {*classes}):
        missing = folder / "train" / unknown[0]
        raise UserError(f"{folder / split / unknown[0]} is a class without training images: put some into {missing}")
    if not found:
        raise UserError(f"{folder / split} has no subfolders: expected one for each class, with its images")
    labels = {name: label for label, name in enumerate(classes)}
    for name in found:
        entries = sorted(_entries(folder / split / name), key=lambda entry: entry.name)
        images = [entry for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
        if not images:
            raise UserError(f"{folder / split / name} has no images: expected files {', '.join(EXTENSIONS)}")
        for entry in images:
            yield labels[name], entry


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


class Tree:
    """The image files of a split as a Source; its errors are those of files_of."""

    def __init__(self, folder: Path, split: str, classes: Sequence[str]):
        files = [(label, entry.name) for label, entry in files_of(folder, split, classes)]
        self.folder, self.split, self.classes = folder, split, classes
        self.labels = np.array([label for label, _ in files], np.int64)
        self._names = Names(name for _, name in files)

    def read(self, index: int) -> bytes:
        return (self.folder / self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return f"{self.split}/{self.classes[self.labels[index]]}/{self._names[index]}"

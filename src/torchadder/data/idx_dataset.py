"""What MNIST and Fashion-MNIST share: four IDX files of 28 x 28 images in ten classes, as 32 x 32 for the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from torchadder.data.folders import cache_folder, find_files
from torchadder.data.idx import read_idx
from torchadder.data.registry import Dataset, Normalization, Split
from torchadder.errors import UserError

SIZE = 32


class IdxDataset(NamedTuple):
    """A data set in four IDX files: its name in commands and in words, where it comes from, and its pixels.

    ``md5``: IDX name -> digest of the uncompressed bytes, in the order of training images and labels, test images
    and labels. ``mirrors`` serve NAME.gz below them. ``mean`` and ``std`` are of the training pixels, 0 to 1.
    ``classes``: the names of the classes, where they have any.
    """

    name: str
    title: str
    md5: Mapping[str, str]
    mirrors: tuple[str, ...]
    mean: float
    std: float
    classes: tuple[str, ...] = ()

    def find(self, data_dir: Path | None) -> list[Path] | None:
        """The four files where folders.find_files finds them."""
        return find_files(self.name, tuple(self.md5), data_dir)

    def cached(self) -> list[Path]:
        """The four files as they are kept once they were fetched."""
        return [cache_folder(self.name) / f"{name}.gz" for name in self.md5]

    def read(self, paths: list[Path]) -> Dataset:
        """The data set in its four files: images float32 (N, 1, 32, 32), labels int64 (N,) in 0..9.

        Images are bilinear from 28 x 28, then (x - mean) / std. UserError where a file is missing, damaged or not
        the published one.
        """
        arrays = [read_idx(path, md5=md5) for path, md5 in zip(paths, self.md5.values(), strict=True)]
        train = self.split(*arrays[:2], source=paths[0])
        test = self.split(*arrays[2:], source=paths[2])
        normalization = Normalization.of([self.mean], [self.std])
        return Dataset(self.name, 10, 1, train, test, classes=self.classes, normalization=normalization)

    def split(self, images: np.ndarray, labels: np.ndarray, *, source: object) -> Split:
        """Images uint8 (N, 28, 28) and labels uint8 (N,) as the network sees them; UserError on other shapes."""
        if images.ndim != 3 or labels.shape != images.shape[:1] or not labels.size:
            raise UserError(f"{source}: images of shape {images.shape} do not go with labels of shape {labels.shape}")
        if labels.max() > 9:
            raise UserError(f"{source}: a label is {labels.max()}, expected 0 to 9")
        resized = torch.empty(len(images), 1, SIZE, SIZE)
        for start in range(0, len(images), 10_000):  # in parts: the float copy of all images is never needed at once
            part = torch.from_numpy(images[start : start + 10_000].astype(np.float32)).unsqueeze(1)
            part = F.interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)
            resized[start : start + len(part)] = part.div_(255).sub_(self.mean).div_(self.std)
        return Split(resized, torch.from_numpy(labels.astype(np.int64)))

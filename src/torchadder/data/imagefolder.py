"""Load imagefolder:DIR, image files in DIR/train/CLASS/ and DIR/test/CLASS/, decoded in memory or streamed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from torchadder.data.fetch import candidate_paths, say
from torchadder.data.images import (
    EXTENSIONS,
    Augmentation,
    Damaged,
    error_reason,
    list_damaged,
    load_pillow,
    open_image,
)
from torchadder.data.registry import (
    Dataset,
    Normalization,
    PackedNames,
    Split,
    normalization_option,
    parse_name,
    register,
    size_option,
)
from torchadder.errors import UserError

MAX_BYTES = 1 << 31  # The limit for decoded pixels in memory.
OTHER_SIZE = "the first image has"  # A part of the reason for an image of another size.
THREADED_PIXELS = 128 * 128  # For smaller images, Python's global lock makes threads useless.


@register("imagefolder:DIR", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """Load "DIR", "DIR,normalize=cifar", or "DIR,size=224" with or without normalize=.

    A relative DIR is looked for in ``data_dir``, or without it in the working directory, TORCHADDER_DATA and the
    cache. It holds train/CLASS/ and test/CLASS/ (or val/CLASS/) with files .jpg, .jpeg or .png; the classes are those
    of train, numbered in the order of their names.

    With size= the images are streamed, of any size, cropped and resized to that one: by RandomResizedCrop where
    training images are augmented, else at the centre. normalize= names published statistics, by default ImageNet's.

    Without size= all images have one size and are held in memory, uint8 (N, 3, H, W), with labels int64 (N,). They are
    normalised by the mean and standard deviation of each channel of the training pixels, or as normalize= says.
    Training images are augmented with a padding of an eighth of the shorter side: 4 for 32 x 32.

    Images that cannot be decoded, or in memory have another size than the first one, raise UserError ("stop") or are
    left out ("skip"; among streamed images the next one replaces them); stderr names them. Raises UserError also for
    another layout of the folder, and for more images than MAX_BYTES in memory.
    """
    name, options = parse_name("imagefolder", argument, ("size", "normalize"))
    folder = _find(name, data_dir)
    classes = list_classes(folder / "train")
    trees = [Tree(folder, split, classes) for split in ("train", _test_split(folder))]
    if "size" in options:
        return Dataset.streamed(
            f"imagefolder:{argument}",
            len(classes),
            *trees,
            size=size_option(options),
            normalization=normalization_option(options),
            on_error=on_error,
            classes=classes,
        )
    decoded, damaged = decode_images(folder, trees)
    if damaged:
        _report(folder, damaged, sum(len(tree.labels) for tree in trees), on_error)
    given = normalization_option(options) if "normalize" in options else None
    normalization = given or training_statistics(decoded[0][0])
    train, test = (Split(pixels, labels, normalization) for pixels, labels in decoded)
    augmentation = Augmentation(padding=min(train.pixels.shape[2:]) // 8)
    return Dataset(f"imagefolder:{argument}", len(classes), 3, train, test, augmentation, classes)


# The files in the folder


class Tree:
    """Read the image files of a split, folder/split/CLASS/NAME, as a Source. Raises UserError as walk_images."""

    def __init__(self, folder: Path, split: str, classes: Sequence[str]):
        files = list(walk_images(folder, split, classes))
        self.folder, self.split, self.classes = folder, split, classes
        self.labels = np.array([label for label, _ in files], np.int64)
        self._names = PackedNames(name for _, name in files)

    def read(self, index: int) -> bytes:
        return (self.folder / self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return f"{self.split}/{self.classes[self.labels[index]]}/{self._names[index]}"


def list_classes(train: Path) -> list[str]:
    """Return the subfolders of the training images, sorted. Raises UserError where there are none."""
    if not train.is_dir():
        raise UserError(f"{train} is no folder: put the training images into {train}/CLASS/")
    if classes := sorted(entry.name for entry in _entries(train) if entry.is_dir()):
        return classes
    raise UserError(f"{train} has no subfolders: expected one for each class, with its images")


def walk_images(folder: Path, split: str, classes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Iterate over the label and the name of each image file of a split, sorted by class and name.

    Raises UserError for a class that is not one of ``classes``, a class without images, and a split without classes.
    """
    found = sorted(entry.name for entry in _entries(folder / split) if entry.is_dir())
    if unknown := sorted({*found} - {*classes}):
        missing = folder / "train" / unknown[0]
        raise UserError(f"{folder / split / unknown[0]} is a class without training images: put some into {missing}")
    if not found:
        raise UserError(f"{folder / split} has no subfolders: expected one for each class, with its images")
    labels = {name: label for label, name in enumerate(classes)}
    for name in found:
        files = sorted(entry.name for entry in _entries(folder / split / name))
        images = [file for file in files if file.lower().endswith(EXTENSIONS)]
        if not images:
            raise UserError(f"{folder / split / name} has no images: expected files {', '.join(EXTENSIONS)}")
        for image in images:
            yield labels[name], image


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def _find(name: str, data_dir: Path | None) -> Path:
    candidates = candidate_paths(name, data_dir)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(
        f"no folder {' or '.join(map(str, candidates))}: put the images into train/CLASS/ and test/CLASS/ of one "
        "folder and name it, imagefolder:DIR"
    )


def _test_split(folder: Path) -> str:
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return name
    raise UserError(f"{folder} has neither test nor val: put the test images into {folder / 'test'}/CLASS/")


# Images in memory


def _report(folder: Path, damaged: Sequence[Damaged], count: int, on_error: str) -> None:
    line = f"{folder}: {len(damaged):,} of {count:,} images cannot be used: {list_damaged(damaged)}"
    if on_error == "stop":
        stream = ""
        if any(OTHER_SIZE in image.reason for image in damaged):
            stream = f"stream images of different sizes with imagefolder:{folder},size=224, "
        raise UserError(f"{line}; {stream}replace them, or leave them out with on_error=skip")
    say("imagefolder", f"{line}; left out")


def decode_images(folder: Path, trees: Sequence[Tree]) -> tuple[list[tuple[Tensor, Tensor]], list[Damaged]]:
    """Decode the images of each split: pixels uint8 (N, 3, H, W) and labels int64 (N,), without damaged images.

    Returns the splits and the damaged images. Reports on stderr. Raises UserError where Pillow is missing, a split has
    no usable image, or all images together exceed MAX_BYTES.
    """
    pillow = load_pillow()
    width, height = _first_size(pillow, folder, trees[0])
    count = sum(len(tree.labels) for tree in trees)
    total = count * 3 * width * height
    if total > MAX_BYTES:
        raise UserError(
            f"{folder}: {count:,} images of {width} x {height} are {total / 2**30:,.1f} GiB decoded, and at most "
            f"{MAX_BYTES / 2**30:g} GiB are held in memory: take fewer or smaller images, or stream them with "
            f"imagefolder:{folder},size=224"
        )
    say("imagefolder", f"decoding {count:,} images of {folder}")
    splits, damaged = [], []
    with ThreadPoolExecutor(torch.get_num_threads() if width * height >= THREADED_PIXELS else 1) as threads:
        for tree in trees:
            pixels = np.empty((len(tree.labels), 3, height, width), np.uint8)
            reasons = [*threads.map(partial(_decode, pillow, tree, pixels), range(len(pixels)))]
            good = np.array([reason is None for reason in reasons])
            if not good.any():
                raise UserError(
                    f"{folder}: none of the {len(good):,} images of {tree.split} can be used ({reasons[0]})"
                )
            kept = pixels if good.all() else pixels[good]
            splits.append((torch.from_numpy(kept), torch.from_numpy(tree.labels[good])))
            damaged += [Damaged(tree.name(i), reason) for i, reason in enumerate(reasons) if reason is not None]
    return splits, damaged


def _first_size(pillow: ModuleType, folder: Path, tree: Tree) -> tuple[int, int]:
    """Return width and height of the first image whose header can be read."""
    reason = ""
    for index in range(len(tree.labels)):
        try:
            with open_image(pillow, io.BytesIO(tree.read(index))) as image:
                return image.size
        except Exception as error:  # Pillow raises many types for damaged images.
            reason = reason or error_reason(error)
    raise UserError(f"{folder}: none of the {len(tree.labels):,} images of train can be used ({reason})")


def _decode(pillow: ModuleType, tree: Tree, pixels: np.ndarray, index: int) -> str | None:
    """Decode an image into pixels[index]; return the reason where it cannot be used."""
    size = pixels.shape[3], pixels.shape[2]
    try:
        with open_image(pillow, io.BytesIO(tree.read(index))) as image:
            if image.size != size:  # Known from the header, before a huge image is decoded.
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, {OTHER_SIZE} {size[0]} x {size[1]}")
            pixels[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises many types for damaged images.
        return error_reason(error)
    return None


def training_statistics(pixels: Tensor) -> Normalization:
    """Return mean and standard deviation of each channel of uint8 (N, C, H, W), from 0 to 1, by exact counts."""
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.float64)
    for part in pixels.split(1024):
        counts += torch.stack([part[:, c].flatten().bincount(minlength=256) for c in range(len(counts))])
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # A constant channel is not scaled.
    return Normalization.of(mean.tolist(), std.tolist())

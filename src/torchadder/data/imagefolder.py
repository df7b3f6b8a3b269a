"""Load imagefolder:DIR, image files in DIR/train/CLASS/ and DIR/test/CLASS/, decoded in memory or streamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchadder.data.fetch import caches, candidate_paths, say
from torchadder.data.images import (
    EXTENSIONS,
    MAX_LISTED,
    TITLES,
    Augmentation,
    Damaged,
    convert,
    error_reason,
    is_image,
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
from torchadder.errors import UserError, shortened

MAX_BYTES = 1 << 31  # The limit for decoded pixels in memory.
OTHER_SIZE = "the first image has"  # A part of the reason for an image of another size.
PART = 256  # Images that a thread decodes in a row.
THREADED_PIXELS = 128 * 128  # For smaller images, Python's global lock makes threads useless.
VERSION = 2  # Increase it when the same files decode to other pixels: the cache is then ignored.


@register("imagefolder:DIR", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """Load "DIR", "DIR,normalize=cifar", or "DIR,size=224" with or without normalize=.

    A relative DIR is looked for in ``data_dir``, or without it in the working directory, TORCHADDER_DATA and the
    cache. It holds train/CLASS/ and test/CLASS/ (or val/CLASS/) with image files; the classes are those of train,
    numbered in the order of their names. Other files and folders are left out, and stderr names them.

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
    classes, subfolders = list_classes(folder / "train"), _find_splits(folder)
    if "size" in options:
        return Dataset.streamed(
            f"imagefolder:{argument}",
            len(classes),
            *(Tree(folder, subfolder, classes) for subfolder in subfolders.values()),
            size=size_option(options),
            normalization=normalization_option(options),
            on_error=on_error,
            classes=classes,
        )
    listed = {split: _list_files(folder, subfolder, classes) for split, subfolder in subfolders.items()}
    images = read_images(folder, listed)
    if images.damaged:
        _report(folder, images.damaged, sum(map(len, listed.values())), on_error)
    if set(images.statistics[1]) == {1.0}:  # the deviation of a constant channel, see _statistics
        say("imagefolder", f"{folder}: all training images have one colour, as if of 16 bits with the upper 8 unused")
    own = Normalization.of(*images.statistics)
    normalization = normalization_option(options) if "normalize" in options else own
    train, test = (Split(*images.splits[split], normalization) for split in ("train", "test"))
    height, width = train.pixels.shape[2:]
    augmentation = Augmentation(padding=min(height, width) // 8)
    return Dataset(f"imagefolder:{argument}", len(classes), 3, train, test, augmentation, classes)


# The files in the folder


class Tree:
    """Read the image files of a split, folder/split/CLASS/NAME, as a Source. Raises UserError as walk_images."""

    def __init__(self, folder: Path, split: str, classes: Sequence[str]):
        files = [(label, entry.name) for label, entry in walk_images(folder, split, classes)]
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


def walk_images(folder: Path, split: str, classes: Sequence[str]) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """Iterate over the label and the entry of each image file of a split, sorted by class and name.

    Raises UserError for a class that is not one of ``classes``, a class without images, and a split without classes.
    """
    inside = _entries(folder / split)
    found = sorted(entry.name for entry in inside if entry.is_dir())
    others = [f"{split}/{entry.name}" for entry in inside if not entry.is_dir()]
    if unknown := sorted({*found} - {*classes}):
        missing = folder / "train" / unknown[0]
        raise UserError(f"{folder / split / unknown[0]} is a class without training images: put some into {missing}")
    if not found:
        raise UserError(f"{folder / split} has no subfolders: expected one for each class, with its images")
    labels = {name: label for label, name in enumerate(classes)}
    for name in found:
        images = []
        for entry in sorted(_entries(folder / split / name), key=lambda entry: entry.name):
            # The name is enough for most files, because opening a million of them takes minutes; a pipe blocks.
            is_file = entry.is_file() or entry.is_symlink()
            if is_file and (entry.name.lower().endswith(EXTENSIONS) or is_image(load_pillow(), entry.path)):
                images.append(entry)
            else:
                others.append(f"{split}/{name}/{entry.name}")
        if not images:
            raise UserError(f"{folder / split / name} has no images: expected {TITLES}")
        for entry in images:
            yield labels[name], entry
    if others:
        named = shortened(others, shown=MAX_LISTED)
        say("imagefolder", f"{folder}: left out, no images of a class ({TITLES}): {len(others):,}, {named}")


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


def _find_splits(folder: Path) -> dict[str, str]:
    """Return the subfolder of each split."""
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return {"train": "train", "test": name}
    raise UserError(f"{folder} has neither test nor val: put the test images into {folder / 'test'}/CLASS/")


# Images in memory


class ImageFile(NamedTuple):
    """Describe an image file below a folder: its label, and size in bytes and time, which show a replaced file."""

    path: str
    label: int
    size: int
    mtime_ns: int


class DecodedImages(NamedTuple):
    """Hold pixels uint8 (N, 3, H, W) and labels int64 (N,) of each split, without the images that are damaged.

    ``statistics``: mean and standard deviation of each channel over all training pixels, from 0 to 1.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    statistics: tuple[list[float], list[float]]
    damaged: list[Damaged]


def _list_files(folder: Path, split: str, classes: Sequence[str]) -> list[ImageFile]:
    files = []
    for label, entry in walk_images(folder, split, classes):
        try:
            size, mtime_ns = entry.stat().st_size, entry.stat().st_mtime_ns
        except OSError:  # A dangling link is reported later, with the images that cannot be decoded.
            size = mtime_ns = 0
        files.append(ImageFile(f"{split}/{classes[label]}/{entry.name}", label, size, mtime_ns))
    return files


def _report(folder: Path, damaged: Sequence[Damaged], count: int, on_error: str) -> None:
    line = f"{folder}: {len(damaged):,} of {count:,} images cannot be used: {list_damaged(damaged)}"
    if on_error == "stop":
        stream = ""
        if any(OTHER_SIZE in image.reason for image in damaged):
            stream = f"stream images of different sizes with imagefolder:{folder},size=224, "
        raise UserError(f"{line}; {stream}replace them, or leave them out with on_error=skip")
    say("imagefolder", f"{line}; left out")


def read_images(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> DecodedImages:
    """Decode the ``files`` of each split, "train" and others, or read them from the cache.

    The cache holds them where the same files (names, labels, sizes, times) were decoded before. Decoding is reported
    on stderr. Raises UserError where Pillow is missing, a split has no usable image, or all images together exceed
    MAX_BYTES.
    """
    cached = next((cache / "imagefolder" / f"{_digest(files)}.safetensors" for cache in caches()), None)
    if cached and (images := _load(cached)) is not None:
        return images
    count = sum(map(len, files.values()))
    say("imagefolder", f"decoding {count:,} images of {folder}")
    start = time.perf_counter()
    images = _decode(folder, files)
    seconds = time.perf_counter() - start
    say("imagefolder", f"{count:,} images in {seconds:.1f} s ({count / seconds:,.0f} images/s)")
    if cached:
        _save(images, cached)
    return images


def _decode(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> DecodedImages:
    pillow = load_pillow()
    size = _first_size(pillow, folder, files["train"])
    total = sum(map(len, files.values())) * 3 * math.prod(size)
    if total > MAX_BYTES:
        raise UserError(
            f"{folder}: {sum(map(len, files.values())):,} images of {size[0]} x {size[1]} are {total / 2**30:,.1f} GiB "
            f"decoded, and at most {MAX_BYTES / 2**30:g} GiB are held in memory: "
            f"take fewer or smaller images, or stream them with imagefolder:{folder},size=224"
        )
    splits, damaged = {}, []
    workers = torch.get_num_threads() if math.prod(size) >= THREADED_PIXELS else 1
    # Pillow warns about metadata, which is not used here.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(workers) as threads:
        for split, listed in files.items():
            pixels = np.empty((len(listed), 3, size[1], size[0]), np.uint8)
            parts = [range(i, min(i + PART, len(listed))) for i in range(0, len(listed), PART)]
            decode = partial(_decode_part, pillow, folder, listed, pixels)
            reasons = {i: reason for found in threads.map(decode, parts) for i, reason in found.items()}
            if len(reasons) == len(listed):
                stream = f"; stream them with imagefolder:{folder},size=224" if OTHER_SIZE in reasons[0] else ""
                unusable = f"none of the {len(listed):,} images of {split} can be used ({reasons[0]})"
                raise UserError(f"{folder}: {unusable}{stream}")
            good = [i for i in range(len(listed)) if i not in reasons]
            labels = torch.tensor([listed[i].label for i in good])
            splits[split] = (torch.from_numpy(pixels[good] if reasons else pixels), labels)
            damaged += [Damaged(listed[i].path, reason) for i, reason in reasons.items()]
    return DecodedImages(splits, _statistics(splits["train"][0]), damaged)


def _first_size(pillow: ModuleType, folder: Path, files: Sequence[ImageFile]) -> tuple[int, int]:
    """Return width and height of the first image that can be used."""
    reason = ""
    for file in files:
        try:
            with open_image(pillow, folder / file.path) as image:
                return convert(pillow, image, "RGB").size
        except Exception as error:  # Pillow raises many types for damaged images.
            reason = reason or error_reason(error)
    raise UserError(f"{folder}: none of the {len(files):,} images of train can be used ({reason})")


def _decode_part(
    pillow: ModuleType, folder: Path, files: Sequence[ImageFile], pixels: np.ndarray, part: range
) -> dict[int, str]:
    """Fill pixels[part]; return index -> reason of the images that cannot be used."""
    size = pixels.shape[3], pixels.shape[2]
    reasons = {}
    for i in part:
        try:
            with open_image(pillow, folder / files[i].path) as image:
                # The header tells the size, up to a turn, before a huge image is decoded.
                rgb = convert(pillow, image, "RGB") if sorted(image.size) == sorted(size) else image
                if rgb.size != size:
                    raise ValueError(f"{rgb.size[0]} x {rgb.size[1]} pixels, {OTHER_SIZE} {size[0]} x {size[1]}")
                pixels[i] = np.asarray(rgb).transpose(2, 0, 1)
        except Exception as error:  # Pillow raises many types for damaged images.
            reasons[i] = error_reason(error)
    return reasons


def _statistics(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of uint8 (N, C, H, W), from 0 to 1, by exact counts."""
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.float64)
    for part in pixels.split(1024):
        counts += torch.stack([part[:, c].flatten().bincount(minlength=256) for c in range(len(counts))])
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # A constant channel is not scaled.
    return mean.tolist(), std.tolist()


def _digest(files: Mapping[str, Sequence[ImageFile]]) -> str:
    about = [VERSION, [[split, listed] for split, listed in files.items()]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _load(path: Path) -> DecodedImages | None:
    """Read the file that _save wrote; None where it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["decoded"])
            splits = {
                split: (file.get_tensor(f"{split}.pixels"), file.get_tensor(f"{split}.labels"))
                for split in about["splits"]
            }
        return DecodedImages(splits, about["statistics"], [Damaged(*damaged) for damaged in about["damaged"]])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        say("imagefolder", f"{path} is damaged ({error}); decoding again")
        return None


def _save(images: DecodedImages, path: Path) -> None:
    """Write ``images`` into the cache. Where that fails, the next start decodes them again."""
    tensors: dict[str, Tensor] = {}
    for split, (pixels, labels) in images.splits.items():
        tensors |= {f"{split}.pixels": pixels, f"{split}.labels": labels}
    about = {"splits": [*images.splits], "statistics": images.statistics, "damaged": images.damaged}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # Several processes may write at once.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"decoded": json.dumps(about)})
        os.replace(temporary, path)
        say("imagefolder", f"kept in {path}")
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        say("imagefolder", f"cannot keep them in {path.parent} ({error}); the next start decodes them again")

"""imagefolder:DIR: a data set of image files, DIR/train/CLASS/ and DIR/test/CLASS/, decoded once and kept in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torchadder.data import decoded
from torchadder.data.augment import Augmentation
from torchadder.data.cifar import MEAN, STD
from torchadder.data.decoded import Damaged, ImageFile
from torchadder.data.folders import places
from torchadder.data.registry import Dataset, Normalization, Split, register
from torchadder.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
NAMED = 10  # images in one message; the count is of all


@register("imagefolder:DIR", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """The images of a folder. ``argument`` is DIR, or DIR,normalize=cifar.

    A relative DIR is looked for in ``data_dir`` where it is given, else in the working directory, TORCHADDER_DATA
    and the cache. It holds train/CLASS/ and test/CLASS/ (or val/CLASS/) with files .jpg, .jpeg or .png, all of one
    size; the classes are those of train, numbered in the order of their names.

    Pixels are uint8 (N, 3, H, W), whatever the files' own mode, normalised by the mean and standard deviation of
    the training pixels, channel by channel, or by CIFAR-10's published ones; labels int64 (N,). Training images are
    augmented with a padding of an eighth of the shorter side: 4 for 32 x 32.

    Images that do not decode, or have another size than the first, stop it ("stop") or are left out ("skip"); both
    count and name them. Raises UserError for that, for a folder laid out otherwise, and for more images than are
    held in memory (decoded.MAX_BYTES).
    """
    folder, normalize = _parse(argument, data_dir)
    classes = _classes(folder / "train")
    files = {split: _files(folder, place, classes) for split, place in _splits(folder).items()}
    images = decoded.read(folder, files)
    if images.damaged:
        _report(folder, images.damaged, sum(map(len, files.values())), on_error)
    normalization = Normalization.of(MEAN, STD) if normalize == "cifar" else Normalization.of(*images.statistics)
    train, test = (Split(*images.splits[split], normalization) for split in ("train", "test"))
    height, width = train.pixels.shape[2:]
    augmentation = Augmentation(padding=min(height, width) // 8)
    return Dataset(f"imagefolder:{argument}", len(classes), 3, train, test, augmentation)


def _parse(argument: str, data_dir: Path | None) -> tuple[Path, str | None]:
    name, comma, option = argument.partition(",")
    key, _, value = option.partition("=")
    if comma and (key, value) != ("normalize", "cifar"):
        raise UserError(f"imagefolder:{argument}: {option!r} is unknown, expected normalize=cifar or nothing")
    path = Path(name).expanduser()
    if path.is_absolute():
        candidates = [path]
    else:
        candidates = [root / path for root in ([Path()] if data_dir is None else []) + places(data_dir)]
    for folder in candidates:
        if folder.is_dir():
            return folder, value or None
    raise UserError(
        f"no folder {' or '.join(map(str, candidates))}: put the images into train/CLASS/ and test/CLASS/ of one "
        "folder and name it, imagefolder:DIR"
    )


def _splits(folder: Path) -> dict[str, str]:
    """The split -> its subfolder."""
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return {"train": "train", "test": name}
    raise UserError(f"{folder} has neither test nor val: put the test images into {folder / 'test'}/CLASS/")


def _classes(train: Path) -> list[str]:
    if not train.is_dir():
        raise UserError(f"{train} is no folder: put the training images into {train}/CLASS/")
    if classes := sorted(entry.name for entry in _entries(train) if entry.is_dir()):
        return classes
    raise UserError(f"{train} has no subfolders: expected one for each class, with its images")


def _files(folder: Path, split: str, classes: Sequence[str]) -> list[ImageFile]:
    """The image files of a split, sorted by class and name."""
    found = sorted(entry.name for entry in _entries(folder / split) if entry.is_dir())
    if unknown := sorted({*found} - {*classes}):
        missing = folder / "train" / unknown[0]
        raise UserError(f"{folder / split / unknown[0]} is a class without training images: put some into {missing}")
    files = []
    for name in found:
        entries = sorted(_entries(folder / split / name), key=lambda entry: entry.name)
        images = [entry for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
        if not images:
            raise UserError(f"{folder / split / name} has no images: expected files {', '.join(EXTENSIONS)}")
        for entry in images:
            try:
                size, mtime_ns = entry.stat().st_size, entry.stat().st_mtime_ns
            except OSError:  # a link to nothing: named with the images that do not decode
                size = mtime_ns = 0
            files.append(ImageFile(f"{split}/{name}/{entry.name}", classes.index(name), size, mtime_ns))
    if not files:
        raise UserError(f"{folder / split} has no subfolders: expected one for each class, with its images")
    return files


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def _report(folder: Path, damaged: Sequence[Damaged], count: int, on_error: str) -> None:
    named = ", ".join(f"{path} ({reason})" for path, reason in damaged[:NAMED])
    more = f" and {len(damaged) - NAMED:,} more" if len(damaged) > NAMED else ""
    line = f"{folder}: {len(damaged):,} of {count:,} images cannot be used: {named}{more}"
    if on_error == "stop":
        raise UserError(f"{line}; replace them, or go on without them with --on-error skip")
    print(f"imagefolder: {line}; left out", file=sys.stderr, flush=True)

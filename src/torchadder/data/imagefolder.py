"""imagefolder:DIR: a data set of image files, DIR/train/CLASS/ and DIR/test/CLASS/, in memory or streamed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torchadder.data import decoded
from torchadder.data.augment import Augmentation
from torchadder.data.decoded import ImageFile
from torchadder.data.folders import candidates_of
from torchadder.data.options import normalization_of, parse, size_of
from torchadder.data.pixels import Damaged, listed
from torchadder.data.registry import Dataset, Normalization, Split, register
from torchadder.data.tree import Tree, classes_of, files_of
from torchadder.errors import UserError


@register("imagefolder:DIR", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """The images of a folder. ``argument`` is DIR, or DIR,normalize=cifar, or DIR,size=224 with or without normalize.

    A relative DIR is looked for in ``data_dir`` where it is given, else in the working directory, TORCHADDER_DATA
    and the cache. It holds train/CLASS/ and test/CLASS/ (or val/CLASS/) with files .jpg, .jpeg or .png; the classes
    are those of train, numbered in the order of their names.

    With size= the images stream, cropped and resized to that size, whatever their own: by RandomResizedCrop where
    training images are augmented, else centrally; normalised by the published statistics of ImageNet or CIFAR-10.

    Without it they are all of one size and held in memory, uint8 (N, 3, H, W), normalised by the mean and standard
    deviation of the training pixels, channel by channel, or by either published ones; labels int64 (N,). Training
    images are then augmented with a padding of an eighth of the shorter side: 4 for 32 x 32.

    Images that do not decode, or in memory have another size than the first, stop it ("stop") or are left out
    ("skip"; where images stream another one stands in); both count and name them. Raises UserError for that, for a
    folder laid out otherwise, and for more images than are held in memory (decoded.MAX_BYTES).
    """
    name, options = parse("imagefolder", argument, ("size", "normalize"))
    folder = _find(name, data_dir)
    classes, places = classes_of(folder / "train"), _splits(folder)
    if "size" in options:
        return Dataset.streamed(
            f"imagefolder:{argument}",
            len(classes),
            *(Tree(folder, place, classes) for place in places.values()),
            size=size_of(options),
            normalization=normalization_of(options),
            on_error=on_error,
            classes=classes,
        )
    files = {split: _files(folder, place, classes) for split, place in places.items()}
    images = decoded.read(folder, files)
    if images.damaged:
        _report(folder, images.damaged, sum(map(len, files.values())), on_error)
    own = Normalization.of(*images.statistics)
    normalization = normalization_of(options) if "normalize" in options else own
    train, test = (Split(*images.splits[split], normalization) for split in ("train", "test"))
    height, width = train.pixels.shape[2:]
    augmentation = Augmentation(padding=min(height, width) // 8)
    return Dataset(f"imagefolder:{argument}", len(classes), 3, train, test, augmentation, classes)


def _find(name: str, data_dir: Path | None) -> Path:
    """The folder of that name. Raises UserError where there is none."""
    candidates = candidates_of(name, data_dir)
    for folder in candidates:
        if folder.is_dir():
            return folder
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


def _files(folder: Path, split: str, classes: Sequence[str]) -> list[ImageFile]:
    files = []
    for label, entry in files_of(folder, split, classes):
        try:
            size, mtime_ns = entry.stat().st_size, entry.stat().st_mtime_ns
        except OSError:  # a link to nothing: named with the images that do not decode
            size = mtime_ns = 0
        files.append(ImageFile(f"{split}/{classes[label]}/{entry.name}", label, size, mtime_ns))
    return files


def _report(folder: Path, damaged: Sequence[Damaged], count: int, on_error: str) -> None:
    line = f"{folder}: {len(damaged):,} of {count:,} images cannot be used: {listed(damaged)}"
    if on_error == "stop":
        stream = ""
        if any(decoded.OTHER_SIZE in image.reason for image in damaged):
            stream = f"stream images of different sizes with imagefolder:{folder},size=224, "
        raise UserError(f"{line}; {stream}replace them, or go on without them with --on-error skip")
    print(f"imagefolder: {line}; left out", file=sys.stderr, flush=True)

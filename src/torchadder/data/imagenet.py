"""Load ImageNet, the thousand classes of ILSVRC 2012, from a folder for each class, streamed at 224 x 224."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from torchadder.data.fetch import search_folders
from torchadder.data.imagefolder import Tree, list_classes
from torchadder.data.registry import NORMALIZATIONS, SIZE, Dataset, register
from torchadder.errors import UserError

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000
LAYOUT = "train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG"


@register("imagenet", options=("partial", "on_error"))
def load(data_dir: Path | None = None, *, partial: bool = False, on_error: str = "stop") -> Dataset:
    """Load ImageNet from the first folder that holds train/ and val/, itself or in its subfolder imagenet.

    The folders are ``data_dir``, or without it TORCHADDER_DATA and the cache. The classes are the subfolders of
    train/, named by WordNet numbers, in their order. ``partial`` accepts any number of classes and images, and reports
    it on stderr.

    Raises UserError where nothing is found, for subfolders with other names, and, unless ``partial``, for other
    numbers of classes or images than the published ones.
    """
    folder = _find(data_dir)
    classes = list_classes(folder / "train")
    if wrong := [name for name in classes if not re.fullmatch(r"n\d{8}", name)]:
        raise UserError(
            f"{folder / 'train' / wrong[0]} is no class of ImageNet, expected n and eight digits; "
            f"other images are imagefolder:{folder},size={SIZE}"
        )
    train, test = Tree(folder, "train", classes), Tree(folder, "val", classes)
    found = f"{len(classes):,} classes, {len(train.labels):,} training and {len(test.labels):,} test images"
    if partial:
        print(f"imagenet: {folder} has {found}", file=sys.stderr, flush=True)
    elif (len(classes), len(train.labels), len(test.labels)) != (CLASSES, TRAIN, VAL):
        raise UserError(
            f"{folder} has {found}, expected {CLASSES:,}, {TRAIN:,} and {VAL:,}: complete it, or accept a part of "
            "ImageNet with partial=True"
        )
    return Dataset.streamed(
        "imagenet",
        len(classes),
        train,
        test,
        size=SIZE,
        normalization=NORMALIZATIONS["imagenet"],
        on_error=on_error,
        classes=classes,
    )


def _find(data_dir: Path | None) -> Path:
    searched = search_folders(data_dir)
    for place in searched:
        for folder in (place / "imagenet", place):
            if (folder / "train").is_dir() and (folder / "val").is_dir():
                return folder
    raise UserError(
        f"no ImageNet in {' or '.join(map(str, searched))}: put {LAYOUT} into one folder, or its subfolder imagenet, "
        "and pass data_dir=DIR"
    )

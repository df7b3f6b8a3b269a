"""ImageNet, the thousand classes of ILSVRC 2012, in folders by class as its users unpack it: streamed at 224 x 224."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from torchadder.data.folders import places
from torchadder.data.options import NORMALIZATIONS, SIZE
from torchadder.data.registry import Dataset, register
from torchadder.data.tree import Tree, classes_of
from torchadder.errors import UserError

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000
LAYOUT = "train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG"


@register("imagenet", options=("partial", "on_error"))
def load(data_dir: Path | None = None, *, partial: bool = False, on_error: str = "stop") -> Dataset:
    """ImageNet from the first place that holds train/ and val/, itself or in its subfolder imagenet.

    Places are ``data_dir``, else TORCHADDER_DATA and the cache. The classes are the WordNet numbers that the
    subfolders of train/ are named by, in their order. ``partial``: any number of classes and images, which are then
    all that the network learns; a line on stderr says how many.

    Raises UserError where nothing is found, for folders of other names, and for other numbers of classes or images
    than the published ones unless ``partial``.
    """
    folder = _find(data_dir)
    classes = classes_of(folder / "train")
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
            "ImageNet with --partial"
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
    searched = places(data_dir)
    for place in searched:
        for folder in (place / "imagenet", place):
            if (folder / "train").is_dir() and (folder / "val").is_dir():
                return folder
    raise UserError(
        f"no ImageNet in {' or '.join(map(str, searched))}: put {LAYOUT} into one folder, or its subfolder imagenet, "
        "and pass --data DIR"
    )

"""Where data files are looked for: --data, then TORCHADDER_DATA, then the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchadder import files
from torchadder.errors import UserError

SUBFOLDERS = {  # where below a place a data set in IDX files may lie, torchvision's and Debian's names included
    "mnist": ("mnist", "MNIST/raw"),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
}


def cache_folder(dataset: str) -> Path:
    """Where fetched files are kept: torchadder/DATASET in $XDG_CACHE_HOME, or in ~/.cache."""
    return files.cache_folder() / dataset


def places(data_dir: Path | None) -> list[Path]:
    """The folders to search, in order: ``data_dir`` alone where it is given, else TORCHADDER_DATA and the cache.

    Raises UserError where one that the user named is no folder.
    """
    if data_dir is not None:
        return [_folder(data_dir, "--data")]
    variable = os.environ.get("TORCHADDER_DATA")
    return [_folder(Path(variable), "TORCHADDER_DATA"), files.cache_folder()] if variable else [files.cache_folder()]


def candidates_of(name: str, data_dir: Path | None) -> list[Path]:
    """What a name of the user's own may mean: below ``data_dir``, else the working directory and the places.

    An absolute one means itself.
    """
    path = Path(name).expanduser()
    if path.is_absolute():
        return [path]
    return [root / path for root in ([Path()] if data_dir is None else []) + places(data_dir)]


def find_files(dataset: str, names: Sequence[str], data_dir: Path | None) -> list[Path] | None:
    """The paths of all ``names`` in one folder, or None where no folder has any of them.

    Each of the places is searched in its SUBFOLDERS, then itself (data sets share the names of their files), for
    NAME.gz and NAME. With ``data_dir`` there is no other place.

    Raises UserError where a place that the user named is no folder, where ``data_dir`` lacks the files, and
    for an incomplete set outside the cache.
    """
    for place in places(data_dir):
        for folder in (*(place / name for name in SUBFOLDERS[dataset]), place):
            found = [path for name in names if (path := _one(folder, name))]
            if len(found) == len(names):
                return found
            if found and place != files.cache_folder():  # a fetch into the cache that was cut short is simply repeated
                missing = ", ".join(f"{n}.gz" for n in names if not _one(folder, n))
                raise UserError(f"{folder} holds a part of {dataset}, but not {missing}")
    if data_dir is not None:
        raise UserError(f"--data {data_dir} holds no {dataset}: expected {', '.join(f'{n}.gz' for n in names)}")
    return None


def _folder(path: Path, origin: str) -> Path:
    if not path.is_dir():
        raise UserError(f"{origin} {path} is no folder; create it, or name the one that holds the data")
    return path


def _one(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)

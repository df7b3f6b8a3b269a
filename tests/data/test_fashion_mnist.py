"""Fashion-MNIST: apart from MNIST, whose file names it has, and what its own become."""

import io
import os
from pathlib import Path

import pytest
import torch

from torchadder.data import fashion_mnist, fetch, load_dataset, mnist
from torchadder.data.idx import write_idx_gz
from torchadder.errors import UserError

FROM_MIRRORS = fetch._from_mirrors


@pytest.mark.parametrize("below", [".", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw"])
def test_found_in_data_folder(tiny_mnist, tiny_arrays, tmp_path, below):
    tiny_mnist(tmp_path / "data" / below)
    dataset = load_dataset("fashion_mnist", tmp_path / "data")
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == ("fashion_mnist", 10, 1)
    assert dataset.augmentation is None
    assert dataset.train.labels.tolist() == tiny_arrays["train-labels-idx1-ubyte"].tolist()
    ours, digits = dataset.train.images.double(), load_dataset("mnist", only_mnist(tiny_mnist, tmp_path)).train.images
    torch.testing.assert_close(ours * 0.3530 + 0.2860, digits.double() * 0.3081 + 0.1307, rtol=0, atol=1e-6)


def only_mnist(tiny_mnist, tmp_path):
    tiny_mnist(tmp_path / "digits")
    return tmp_path / "digits"


def test_both_below_one_folder(tiny_mnist, tmp_path, monkeypatch):
    tiny_mnist(tmp_path / "data" / "mnist")
    words = "data holds no fashion_mnist: expected train-images-idx3-ubyte.gz"
    with pytest.raises(UserError, match=words):
        load_dataset("fashion_mnist", tmp_path / "data")
    tiny_mnist(tmp_path / "data" / "fashion_mnist")
    other = dict.fromkeys(mnist.MD5, "0" * 32)
    monkeypatch.setattr(mnist, "MNIST", mnist.MNIST._replace(md5=other))
    assert len(load_dataset("fashion_mnist", tmp_path / "data").test) == 5
    with pytest.raises(UserError, match=r"data.mnist.train-images.* not the published content"):
        load_dataset("mnist", tmp_path / "data")


def test_fetched_from_its_own_mirrors_alone(tiny_mnist, tiny_arrays, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "_from_mirrors", FROM_MIRRORS)
    monkeypatch.setattr(fetch, "from_package_index", None)  # holds MNIST
    served = {}

    def urlopen(url, timeout):
        mirror, _, name = url.rpartition("/")
        if f"{mirror}/" not in served:
            raise OSError("no route")
        return io.BytesIO(write_idx_gz(tiny_arrays[name.removesuffix(".gz")]))

    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError, match=r"no Fashion-MNIST in the cache and no network.*--data DIR"):
        load_dataset("fashion_mnist")
    assert "fashion_mnist: no answer (no route)" in capsys.readouterr().err
    served[fashion_mnist.FASHION_MNIST.mirrors[1]] = True
    assert len(load_dataset("fashion_mnist").train) == 9
    folder = tmp_path / "cache" / "torchadder" / "fashion_mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in mnist.MD5)
    monkeypatch.setattr(fetch, "fetch", None)  # the second time nothing is fetched
    assert len(load_dataset("fashion_mnist").train) == 9


def real():
    places = [Path(p) for p in (os.environ.get("TORCHADDER_DATA"), "/usr/share/datasets") if p]
    names = ("fashion_mnist", "fashion-mnist")
    found = (p for p in places for name in names if (p / name / "train-images-idx3-ubyte.gz").is_file())
    return next(found, None)


REAL = real()


@pytest.mark.skipif(REAL is None, reason="no Fashion-MNIST at hand: set TORCHADDER_DATA")
def test_the_real_fashion_mnist():
    dataset = load_dataset("fashion_mnist", REAL)
    assert dataset.train.images.shape == (60_000, 1, 32, 32)
    assert dataset.test.images.shape == (10_000, 1, 32, 32)
    assert dataset.train.labels[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.train.images.mean().abs() < 0.01

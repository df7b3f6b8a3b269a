"""Test CIFAR-10 and CIFAR-100: every published form gives the same tensors, and damaged files one line."""

import gzip
import hashlib
import io
import lzma
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.samples import (
    LAYOUT_IDS,
    LAYOUTS,
    SETS,
    archived,
    arrays,
    contents,
    name_of,
    tarred,
    unpacked,
)

from torchadder.data import Augmentation, cifar, fetch, load_dataset
from torchadder.errors import UserError

CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FORMS = {
    "folder": unpacked,
    "folder below its name": lambda folder, layout, files: unpacked(folder / name_of(layout), layout, files),
    "the folder itself": lambda folder, layout, files: unpacked(folder.parent, layout._replace(folder="data"), files),
    "gz": lambda *args: archived(f"{args[1].folder}.tar.gz", gzip.compress)(*args),
    "gz below its name": lambda *args: archived("cifar-100-10.tar.gz", gzip.compress, name_of(args[1]))(*args),
    "xz": lambda *args: archived(f"{name_of(args[1])}-subset.tar.xz", lzma.compress)(*args),
    "tgz": lambda *args: archived(f"{args[1].folder}.tgz", gzip.compress)(*args),
    "unpacked by the browser": lambda *args: archived(f"{args[1].folder}.tar.gz", bytes)(*args),
}


@pytest.fixture
def published(monkeypatch):
    """Make the digests of the tiny files the published ones."""
    for name, data in SETS.items():
        layouts = [
            layout._replace(md5={file: hashlib.md5(content).hexdigest() for file, content in contents(layout).items()})
            for layout in data.layouts
        ]
        monkeypatch.setattr(cifar, name.upper(), data._replace(layouts=tuple(layouts)))


@pytest.fixture(autouse=True)
def no_mirror(nowhere_else, monkeypatch):
    monkeypatch.setattr(fetch, "fetch_archive", lambda dataset, archive: None)


def expected(name):
    batches = arrays(name)
    images = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32) / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in CIFAR10_STATISTICS)
    return (images - mean) / std, np.concatenate([labels for _, labels in batches]).tolist()


def assert_is_the_data(dataset, name="cifar10"):
    images, labels = expected(name)
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == (name, SETS[name].num_classes, 3)
    assert dataset.augmentation == Augmentation(padding=4)
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    for split, part in ((dataset.train, slice(8)), (dataset.test, slice(8, 12))):
        assert (split.pixels.dtype, split.images.dtype, split.labels.dtype) == (torch.uint8, torch.float32, torch.int64)
        np.testing.assert_allclose(split.images.numpy(), images[part], rtol=0, atol=2e-6)
        assert split.labels.tolist() == labels[part]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=LAYOUT_IDS)
def test_every_form_gives_the_same_tensors(published, tmp_path, name, layout, form):
    FORMS[form](tmp_path / "data", layout, contents(layout))
    assert_is_the_data(load_dataset(name, tmp_path / "data"), name)


def test_each_of_two_sets_in_one_folder_is_found(published, tmp_path):
    for layout in (cifar.BINARY, cifar.BINARY_100):
        archived(f"{layout.folder}.tar.gz", gzip.compress)(tmp_path, layout, contents(layout))
    for name in SETS:
        assert_is_the_data(load_dataset(name, tmp_path), name)


def test_folders_are_searched_in_order(published, tmp_path, monkeypatch):
    files = contents(cifar.BINARY)
    (tmp_path / "variable").mkdir()
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "variable"))
    with pytest.raises(UserError, match=r"no CIFAR-10 in .*variable or .*cache.torchadder: put cifar-10-binary.tar.gz"):
        load_dataset("cifar10")
    archived("cifar-10-binary.tar.gz", gzip.compress)(
        tmp_path / "cache" / "torchadder" / "cifar10", cifar.BINARY, files
    )
    assert_is_the_data(load_dataset("cifar10"))
    unpacked(tmp_path / "variable", cifar.BINARY, {**files, "test_batch.bin": b""})
    with pytest.raises(UserError, match=r"variable.*test_batch.bin is not the published file"):
        load_dataset("cifar10")


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=LAYOUT_IDS)
def test_other_files_than_the_published_are_accepted_only_on_request(tmp_path, name, layout):
    unpacked(tmp_path, layout, contents(layout))
    first, md5 = next(iter(layout.md5.items()))
    words = rf"{first} is not the published file \(md5 \w+, expected {md5}\): replace it, or .*partial=True"
    with pytest.raises(UserError, match=words):
        load_dataset(name, tmp_path)
    assert_is_the_data(load_dataset(name, tmp_path, partial=True), name)


def test_archives_of_other_data_are_ignored(published, tmp_path):
    archived("cifar-100-binary.tar.gz", gzip.compress)(
        tmp_path, cifar.BINARY._replace(folder="cifar-100-binary"), {"train.bin": b"x"}
    )
    archived("cifar10-jpeg.tar.xz", lzma.compress)(tmp_path, cifar.BINARY._replace(folder="train"), {"0.jpg": b"x"})
    archived("cifar10.tar.gz", gzip.compress)(tmp_path, cifar.BINARY, {})  # nothing of it inside
    with pytest.raises(UserError, match=f"no CIFAR-10 in {tmp_path}: put"):
        load_dataset("cifar10", tmp_path)
    archived("cifar10-mine.tar.gz", gzip.compress)(tmp_path, cifar.PYTHON, contents(cifar.PYTHON))
    assert_is_the_data(load_dataset("cifar10", tmp_path))


def change(name, content):
    """Return a function that writes a set with one file changed (None: missing)."""

    def apply(folder):
        layout = next(layout for _, layout in LAYOUTS if name in layout.md5)
        files = contents(layout)
        if content is None:
            del files[name]
        else:
            files[name] = content(files[name])
        unpacked(folder, layout, files)

    return apply


def link(folder):
    files = contents(cifar.BINARY)
    content = files.pop("test_batch.bin")
    unpacked(folder / "secret", cifar.BINARY, {"test_batch.bin": content})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in files:
            member = tarfile.TarInfo(f"{cifar.BINARY.folder}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
        member = tarfile.TarInfo(f"{cifar.BINARY.folder}/test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, str(folder / "secret")
        archive.addfile(member)
    (folder / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())


def broken_archive(change):
    def apply(folder):
        content = gzip.compress(tarred(contents(cifar.BINARY), cifar.BINARY.folder))
        (folder / "cifar-10-binary.tar.gz").write_bytes(change(content))

    return apply


def big_header(folder):
    """Write a pax header of a gibibyte of zeros, which tarfile would read whole."""
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    zeros = gzip.compress(bytes(1 << 20))
    content = gzip.compress(member.tobuf()) + zeros * 1024  # gzip streams follow each other
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)


LAST_CHANNELS = np.zeros((1, 32, 32, 3), np.uint8)
REFUSED = [  # what lies in the folder -> words in the message
    (lambda folder: None, "no CIFAR-10 in .*: put cifar-10-binary.tar.gz or cifar-10-python.tar.gz .* data_dir=DIR"),
    (change("data_batch_2.bin", None), "cifar-10-batches-bin holds a part of cifar10, but not data_batch_2.bin$"),
    (change("test_batch", None), "cifar-10-batches-py holds a part of cifar10, but not test_batch$"),
    (change("test_batch.bin", lambda content: content[:-1]), "test_batch.bin: truncated, 12,291 bytes are no multiple"),
    (change("test_batch.bin", lambda content: b""), "test_batch.bin: 0 images do not go with 0 labels"),
    (change("test_batch.bin", lambda content: b"\x0a" + content[1:]), "test_batch.bin: a label is 10, expected 0 to 9"),
    (change("test_batch.bin", lambda content: bytes(1 << 16)), "test_batch.bin: more than 0 MiB"),
    (change("data_batch_1", lambda content: b""), "data_batch_1: no batch of CIFAR images"),
    (change("data_batch_1", lambda content: content[:-1]), "data_batch_1: no batch of CIFAR images"),
    (
        change("data_batch_1", lambda content: pickle.dumps({"data": Path("x"), "labels": []})),
        "no batch of CIFAR images .*Path is not part of an array.*; replace the file$",
    ),
    (
        change("data_batch_1", lambda content: pickle.dumps({"data": LAST_CHANNELS, "labels": [0]})),
        r"pixels of shape \(1, 32, 32, 3\) and dtype uint8",
    ),
    (change("data_batch_1", lambda content: content[:20] + content[-20:]), "data_batch_1: no batch of CIFAR images"),
    (change("data_batch_1", lambda content: re.sub(rb"(q\x05\(K).", b"\\1\x0b", content)), "a label is 11"),
    (
        change("data_batch_1", lambda content: content.replace(b"U\x02u1", b"U\x02i2")),
        r"an array of shape \(3, 3072\) in 9216 bytes",
    ),
    (
        change("data_batch_1", lambda content: content.replace(struct.pack("<i", 3), struct.pack("<i", 9))),
        r"an array of shape \(9, 3072\) in 9216 bytes",
    ),
    (
        change("data_batch_1", lambda content: re.sub(rb"(q\x05\()K.", b"\\1J\xff\xff\xff\xff", content)),
        "a label is -1, expected 0 to 9",
    ),
    (
        change("data_batch_1", lambda content: content.replace(b"(K", b"(K\x01K", 1)),
        "3 images do not go with 4 labels",
    ),
    (link, "cifar-10-binary.tar.gz holds a part of cifar10, but not test_batch.bin"),
    (
        broken_archive(lambda content: content[:2000]),
        "cifar-10-binary.tar.gz: unreadable, corrupt or truncated archive",
    ),
    (
        broken_archive(lambda content: b"junk" + content),
        "cifar-10-binary.tar.gz: unreadable, corrupt or truncated archive",
    ),
    (broken_archive(lambda content: b""), "cifar-10-binary.tar.gz: unreadable, corrupt or truncated archive"),
    (
        broken_archive(lambda content: gzip.compress(gzip.decompress(content)[:30_000])),
        r"corrupt or truncated archive \(unexpected end of data\)",
    ),
    (broken_archive(lambda content: gzip.compress(bytes(1 << 19))), "no CIFAR-10 in .*: put"),  # an empty one
    (broken_archive(lambda content: gzip.compress(b"x" * (1 << 19))), "corrupt or truncated archive"),
    (big_header, "more than 1 MiB uncompressed"),
]


REFUSED_100 = [
    (lambda folder: None, "no CIFAR-100 in .*: put cifar-100-binary.tar.gz or cifar-100-python.tar.gz .* data_dir=DIR"),
    (change("test.bin", None), "cifar-100-binary holds a part of cifar100, but not test.bin$"),
    (change("test", None), "cifar-100-python holds a part of cifar100, but not test$"),
    (
        change("train.bin", lambda content: content[:-1]),
        "train.bin: truncated, 24,591 bytes are no multiple .* 3,074 bytes",
    ),
    (change("train.bin", lambda content: b"\x00\x64" + content[2:]), "train.bin: a label is 100, expected 0 to 99"),
    (
        change("train", lambda content: content.replace(b"fine_", b"good_")),
        "train: no batch of CIFAR images .*fine_labels",
    ),
]


@pytest.mark.parametrize(
    ("name", "prepare", "words"),
    [("cifar10", *row) for row in REFUSED] + [("cifar100", *row) for row in REFUSED_100],
)
def test_refused(tmp_path, monkeypatch, name, prepare, words):
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 1 << 15)
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 1 << 20)
    prepare(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset(name, tmp_path, partial=True)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data_dir=.*nowhere is no folder"):
        load_dataset("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TORCHADDER_DATA=.*nowhere is no folder"):
        load_dataset("cifar10")


# Batches pickled today


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("labels", [list, np.int64, lambda labels: [*labels.astype(np.int64)]])
@pytest.mark.parametrize("shape", [(-1, 3072), (-1, 3, 32, 32)])
def test_batches_of_any_python_and_numpy(protocol, labels, shape):
    pixels, expected = arrays()[0]
    content = pickle.dumps({"data": pixels.reshape(shape), "labels": labels(expected)}, protocol)
    images, found = cifar.read_python(content, "batch")
    assert np.array_equal(images, pixels)
    assert (found.dtype, found.tolist()) == (np.int64, expected.tolist())

"""CIFAR-10: every published form gives the same tensors, and what each wrong file, archive and pickle gets."""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import re
import struct
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadder.data import cifar, load_dataset
from torchadder.errors import UserError

COUNTS = (3, 1, 2, 1, 1, 4)  # images in the five training batches and the test batch


def arrays():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n, np.uint8)) for n in COUNTS]


def binary(images, labels):
    return np.concatenate([labels[:, None], images], axis=1).tobytes()


def python(images, labels, *, fortran=False, dtype=b"u1", name=b"numpy\nndarray"):
    """A batch as Python 2 and its numpy pickled it, opcode by opcode."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def integers(*values):
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    raw = images.tobytes(order="F" if fortran else "C")
    return b"".join(
        [
            b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03",
            text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07",
            b"c" + name + b"\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09",
            b"(K\x01" + integers(*images.shape) + b"\x86cnumpy\ndtype\nq\x0a" + text(dtype) + b"K\x00K\x01\x87Rq\x0b",
            b"(K\x03" + text(b"|") + b"NNN" + integers(-1, -1, 0) + b"tb" + (b"\x88" if fortran else b"\x89"),
            b"T" + struct.pack("<i", len(raw)) + raw + b"tb",
            text(b"filenames") + b"q\x0c]q\x0d(" + b"".join(text(b"dog.png") for _ in labels) + b"eu.",
        ]
    )


def contents(layout):
    if layout is cifar.BINARY:
        return {name: binary(*batch) for name, batch in zip(layout.md5, arrays(), strict=True)}
    return {
        name: python(*batch, fortran=i % 2 == 0)
        for i, (name, batch) in enumerate(zip(layout.md5, arrays(), strict=True))
    }


def unpacked(folder, layout, files):
    (folder / layout.folder).mkdir(parents=True)
    for name, content in files.items():
        (folder / layout.folder / name).write_bytes(content)


def tarred(files, folder):
    """The bytes of a tar file, with the folder itself and a readme in it as in the published ones."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, content in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def archived(name, compress, below="."):
    def write(folder, layout, files):
        (folder / below).mkdir(parents=True, exist_ok=True)
        (folder / below / name).write_bytes(compress(tarred(files, layout.folder)))

    return write


FORMS = {
    "folder": unpacked,
    "folder below cifar10": lambda folder, layout, files: unpacked(folder / "cifar10", layout, files),
    "the folder itself": lambda folder, layout, files: unpacked(folder.parent, layout._replace(folder="data"), files),
    "gz": archived("cifar-10-binary.tar.gz", gzip.compress),
    "gz below cifar10": archived("cifar-10-python.tar.gz", gzip.compress, "cifar10"),
    "xz": archived("cifar10-subset.tar.xz", lzma.compress),
}


@pytest.fixture
def published(monkeypatch):
    """The tiny files are the published ones."""
    layouts = [
        layout._replace(md5={name: hashlib.md5(content).hexdigest() for name, content in contents(layout).items()})
        for layout in cifar.LAYOUTS
    ]
    monkeypatch.setattr(cifar, "LAYOUTS", tuple(layouts))


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHADDER_DATA", raising=False)


def expected():
    images = np.concatenate([images for images, _ in arrays()]).reshape(-1, 3, 32, 32) / 255
    mean, std = np.array(cifar.MEAN).reshape(3, 1, 1), np.array(cifar.STD).reshape(3, 1, 1)
    return (images - mean) / std, np.concatenate([labels for _, labels in arrays()]).tolist()


def assert_is_the_data(dataset):
    images, labels = expected()
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == ("cifar10", 10, 3)
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    for split, part in ((dataset.train, slice(8)), (dataset.test, slice(8, 12))):
        assert (split.images.dtype, split.labels.dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(split.images.numpy(), images[part], rtol=0, atol=2e-6)
        assert split.labels.tolist() == labels[part]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", cifar.LAYOUTS, ids=["binary", "python"])
def test_every_form_gives_the_same_tensors(published, tmp_path, layout, form):
    FORMS[form](tmp_path / "data", layout, contents(layout))
    assert_is_the_data(load_dataset("cifar10", tmp_path / "data"))


def test_places_are_searched_in_order(published, tmp_path, monkeypatch):
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


def test_partial_files_are_accepted_only_on_request(tmp_path):
    unpacked(tmp_path, cifar.BINARY, contents(cifar.BINARY))
    words = "data_batch_1.bin is not the published file .*: replace it, or accept a set .* with --partial"
    with pytest.raises(UserError, match=words):
        load_dataset("cifar10", tmp_path)
    assert_is_the_data(load_dataset("cifar10", tmp_path, partial=True))


def test_partial_is_refused_where_it_means_nothing():
    with pytest.raises(UserError, match="mnist is read whole or not at all; leave --partial out"):
        load_dataset("mnist", partial=True)


def test_archives_of_other_data_are_passed_over(published, tmp_path):
    archived("cifar-100-binary.tar.gz", gzip.compress)(
        tmp_path, cifar.BINARY._replace(folder="cifar-100-binary"), {"train.bin": b"x"}
    )
    archived("cifar10-jpeg.tar.xz", lzma.compress)(tmp_path, cifar.BINARY._replace(folder="train"), {"0.jpg": b"x"})
    archived("cifar10.tar.gz", gzip.compress)(tmp_path, cifar.BINARY, {})  # nothing of it inside
    with pytest.raises(UserError, match=f"no CIFAR-10 in {tmp_path}: put"):
        load_dataset("cifar10", tmp_path)
    archived("cifar10-mine.tar.gz", gzip.compress)(tmp_path, cifar.PYTHON, contents(cifar.PYTHON))
    assert_is_the_data(load_dataset("cifar10", tmp_path))


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", [b"u1", b"|u1"])
def test_pickled_arrays(fortran, dtype):
    images, labels = arrays()[0]
    found = cifar.read_python(python(images, labels, fortran=fortran, dtype=dtype), "batch")
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], labels)


def change(name, content):
    """A set in which one file is another (None: missing)."""

    def apply(folder):
        layout = cifar.BINARY if name.endswith(".bin") else cifar.PYTHON
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
    """A pax header of a gibibyte of zeros, which tarfile would read whole."""
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    zeros = gzip.compress(bytes(1 << 20))
    content = gzip.compress(member.tobuf()) + zeros * 1024  # gzip streams follow each other
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)


REFUSED = [  # what lies in the folder -> words in the message
    (lambda folder: None, "no CIFAR-10 in .*: put cifar-10-binary.tar.gz or cifar-10-python.tar.gz .* --data DIR"),
    (change("data_batch_2.bin", None), "cifar-10-batches-bin holds a part of cifar10, but not data_batch_2.bin$"),
    (change("test_batch", None), "cifar-10-batches-py holds a part of cifar10, but not test_batch$"),
    (change("test_batch.bin", lambda content: content[:-1]), "test_batch.bin: truncated, 12,291 bytes are no whole"),
    (change("test_batch.bin", lambda content: b""), "test_batch.bin: 0 images do not go with 0 labels"),
    (change("test_batch.bin", lambda content: b"\x0a" + content[1:]), "test_batch.bin: a label is 10, expected 0 to 9"),
    (change("test_batch.bin", lambda content: bytes(1 << 16)), "test_batch.bin: more than 0 MiB"),
    (change("data_batch_1", lambda content: b""), "data_batch_1: no batch of CIFAR images"),
    (change("data_batch_1", lambda content: content[:-1]), "data_batch_1: no batch of CIFAR images"),
    (change("data_batch_1", lambda content: content[:20] + content[-20:]), "data_batch_1: no batch of CIFAR images"),
    (change("data_batch_1", lambda content: re.sub(rb"(q\x05\(K).", b"\\1\x0b", content)), "a label is 11"),
    (change("data_batch_1", lambda content: content.replace(b"U\x02u1", b"U\x02i2")), r"pixels 3 x 3072 of b'i2'"),
    (
        change("data_batch_1", lambda content: content.replace(struct.pack("<i", 3), struct.pack("<i", 9))),
        "pixels 9 x 3072 of b'u1' in 9216 bytes",
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


@pytest.mark.parametrize(("prepare", "words"), REFUSED)
def test_refused(tmp_path, monkeypatch, prepare, words):
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 1 << 15)
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 1 << 20)
    prepare(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset("cifar10", tmp_path, partial=True)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--data .*nowhere is no folder"):
        load_dataset("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TORCHADDER_DATA .*nowhere is no folder"):
        load_dataset("cifar10")


class Code:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_code_is_not_run(tmp_path):
    content = pickle.dumps({"data": Code(tmp_path / "written")}, protocol=2)
    with pytest.raises(UserError, match=r"batch: no batch of CIFAR images \(\w+.mkdir is not part of an array\)"):
        cifar.read_python(content, "batch")
    assert not (tmp_path / "written").exists()
    images, labels = arrays()[0]
    odd = b"\x80\x04X\x06\x00\x00\x00os\nos\nX\x05\x00\x00\x00mkdir\x93."  # a name of two lines
    with pytest.raises(UserError, match=r"os os .mkdir is not part of an array") as caught:
        cifar.read_python(odd, "batch")
    assert "\n" not in str(caught.value)
    for name in (b"numpy\nload", b"builtins\neval", b"numpy.core.multiarray\nfromfile"):
        with pytest.raises(UserError, match="is not part of an array"):
            cifar.read_python(python(images, labels, name=name), "batch")


def test_a_pickle_that_asks_for_memory_gets_none():
    with pytest.raises(UserError, match="memo index 268435456"):  # of two gibibytes
        cifar.read_python(b"\x80\x02Nr" + struct.pack("<I", 1 << 28) + b".", "batch")


SMALL = python(np.zeros((1, 3072), np.uint8), np.array([3], np.uint8))
HEAD = len(SMALL) - 3072 - 40


def mutated(original, positions):
    """``original`` cut, extended, or with some bytes replaced."""
    replaced = st.dictionaries(positions, st.integers(0, 255), max_size=6)
    return st.builds(
        lambda cut, changes, tail: (
            bytes(changes.get(i, byte) for i, byte in enumerate(original))[: len(original) - cut] + tail
        ),
        st.just(0) | st.integers(0, len(original)),
        replaced,
        st.binary(max_size=8),
    )


@settings(max_examples=500, deadline=None)
@given(content=mutated(SMALL, st.integers(0, HEAD) | st.integers(len(SMALL) - 40, len(SMALL) - 1)) | st.binary())
def test_fuzzed_pickles_end_in_records_or_a_line(content):
    with suppress(UserError):
        images, labels = cifar.read_python(content, "batch")
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert images.shape[1:] == (3072,)


TAR = tarred({"data_batch_1.bin": bytes(100)}, cifar.BINARY.folder)[:3072]


@settings(max_examples=200, deadline=None)
@given(content=mutated(TAR, st.integers(0, len(TAR) - 1)))
def test_fuzzed_archives_end_in_files_or_a_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar.gz"
    path.write_bytes(gzip.compress(content, 0))
    with suppress(UserError):
        found = cifar._unpack(path)
        assert found is None or set(found[2]) <= set(cifar.BINARY.md5)


def subset():
    folder = Path(os.environ.get("TORCHADDER_DATA", "nowhere"))
    return folder if (folder / "cifar10-subset.tar.xz").is_file() else None


REAL = subset()


@pytest.mark.skipif(REAL is None, reason="no cifar10-subset.tar.xz at hand: set TORCHADDER_DATA")
def test_real_images():
    dataset = load_dataset("cifar10", REAL, partial=True)
    assert dataset.train.images.shape == (5170, 3, 32, 32)
    assert dataset.test.images.shape == (500, 3, 32, 32)
    assert dataset.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert dataset.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert dataset.train.images.mean((0, 2, 3)).abs().max() < 0.05
    with pytest.raises(UserError, match=r"data_batch_1.bin is not the published file"):
        load_dataset("cifar10", REAL)

"""Make small files for tests: CIFAR as it is published, images of one colour, and damaged copies of bytes."""

import io
import multiprocessing
import struct
import tarfile

import numpy as np
import torch
from hypothesis import strategies as st

from torchadder.data import cifar

COLOURS = 200
COUNTS = {  # images in the training batches and the test batch
    "cifar10": (3, 1, 2, 1, 1, 4),
    "cifar100": (8, 4),
}
SETS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
LAYOUTS = [(name, layout) for name, data in SETS.items() for layout in data.layouts]
LAYOUT_IDS = [layout.folder for _, layout in LAYOUTS]


def arrays(name="cifar10"):
    rng = np.random.default_rng(0)
    classes = SETS[name].num_classes
    return [(rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, classes, n, np.uint8)) for n in COUNTS[name]]


def binary(images, labels, coarse=()):
    return np.concatenate([*(c[:, None] for c in coarse), labels[:, None], images], axis=1).tobytes()


def python(images, labels, *, key=b"labels", fortran=False, name=b"numpy\nndarray"):
    """Return a batch as Python 2 and its numpy pickled it, opcode by opcode."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def integers(*values):
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    raw = images.tobytes(order="F" if fortran else "C")
    return b"".join(
        [
            b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03",
            text(key) + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07",
            b"c" + name + b"\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09",
            b"(K\x01" + integers(*images.shape) + b"\x86cnumpy\ndtype\nq\x0a" + text(b"u1") + b"K\x00K\x01\x87Rq\x0b",
            b"(K\x03" + text(b"|") + b"NNN" + integers(-1, -1, 0) + b"tb" + (b"\x88" if fortran else b"\x89"),
            b"T" + struct.pack("<i", len(raw)) + raw + b"tb",
            text(b"filenames") + b"q\x0c]q\x0d(" + b"".join(text(b"dog.png") for _ in labels) + b"eu.",
        ]
    )


def contents(layout):
    name = name_of(layout)
    batches = dict(zip(layout.md5, arrays(name), strict=True))
    if layout is cifar.BINARY:
        return {file: binary(*batch) for file, batch in batches.items()}
    if layout.folder == cifar.BINARY_100.folder:  # the coarse label stands first
        return {file: binary(*batch, coarse=[batch[1] // 5 + 100]) for file, batch in batches.items()}
    key = b"labels" if name == "cifar10" else b"fine_labels"
    return {file: python(*batch, key=key, fortran=i % 2 == 0) for i, (file, batch) in enumerate(batches.items())}


def unpacked(folder, layout, files):
    (folder / layout.folder).mkdir(parents=True)
    for name, content in files.items():
        (folder / layout.folder / name).write_bytes(content)


def tarred(files, folder):
    """Return a tar file with ``files`` in ``folder``, and a readme, as in the published archives."""
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


def name_of(layout):
    return next(name for name, known in LAYOUTS if known.folder == layout.folder)


def colour_of(number):
    return (number * 37 % 256, number * 91 % 256, number * 151 % 256)


def content_of(number, size=(40, 30), form="JPEG"):
    """Return an image file of one colour, of ``size`` (width, height); the colour tells its number."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, colour_of(number)).save(file, form)
    return file.getvalue()


def numbers_of(images, normalization):
    """Return the numbers of images float32 (N, 3, H, W) of one colour each, which were normalised."""
    mean, std = (t.flatten().numpy() for t in normalization)
    colours = (images.mean((2, 3)).numpy() * std + mean) * 255
    known = np.array([colour_of(number) for number in range(COLOURS)])
    distances = np.abs(colours[:, None] - known).max(2)
    assert distances.min(1).max() < 4  # JPEG's error
    return distances.argmin(1).tolist()


class Files:
    """Hold PNG files of 16 x 12 in memory, as a Source. The red channel and the label of each are its index."""

    def __init__(self, count, damaged=()):
        self.labels = np.arange(count)
        self.reads = multiprocessing.Value("q", 0)
        self.contents = [self.content(i) if i not in damaged else b"junk" for i in range(count)]

    @staticmethod
    def pixels(index):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)
        pixels[..., 0] = index
        return pixels

    def content(self, index):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.pixels(index)).save(file, "PNG")
        return file.getvalue()

    def read(self, index):
        with self.reads.get_lock():
            self.reads.value += 1
        return self.contents[index]

    def name(self, index):
        return f"{index}.png"


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def everything(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def mutated(original, positions=None):
    """Return a strategy of ``original`` cut, extended, or with some bytes at ``positions`` replaced."""
    positions = st.integers(0, len(original) - 1) if positions is None else positions

    def changed(cut, changes, tail):
        content = bytearray(original)
        for place, byte in changes.items():
            content[place] = byte
        return bytes(content[: len(original) - cut]) + tail

    replaced = st.dictionaries(positions, st.integers(0, 255), max_size=8)
    return st.builds(changed, st.just(0) | st.integers(0, len(original)), replaced, st.binary(max_size=8))

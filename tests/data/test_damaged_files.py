"""Test every reader with mutated files: it gives a sound result or one line, never another error.

TORCHADDER_FUZZ=100000 sets the number of mutations of each file; the default takes some seconds.
"""

import io
import os
import pickle
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tests.data.samples import Files, mutated, python, tarred

from torchadder.data import StreamedSplit, cifar, mnist, open_batches, webdataset
from torchadder.data.images import load_pillow
from torchadder.data.preprocessing import Preprocessing
from torchadder.data.registry import Normalization
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.models.checkpoint import cpu_state, load_checkpoint

Image = pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")

EXAMPLES = int(os.environ.get("TORCHADDER_FUZZ", "50"))
GREY, COLOUR = Normalization.of([0.5], [0.5]), Normalization.of([0.5] * 3, [0.5] * 3)


def read_idx(path):
    array = mnist.read_idx(path)
    assert array.dtype == np.uint8
    assert np.array_equal(mnist.parse_idx(mnist.format_idx(array), source="again"), array)


def read_batch(path):
    images, labels = cifar.read_python(path.read_bytes(), "batch")
    assert (images.dtype, labels.dtype, images.shape[1:]) == (np.uint8, np.int64, (3072,))


def read_archive(path):
    found = cifar._unpack(cifar.CIFAR10, path)
    assert found is None or {*found[2]} <= {*cifar.BINARY.md5}


def read_shard(path):
    shards = webdataset.Shards([path])
    assert all(isinstance(shards.read(i), bytes) and shards.labels[i] >= 0 for i in range(len(shards.labels)))


def read_image(path):
    """Read an image for training, then for predict, where an error of any type becomes one line."""
    files = Files(0)
    files.labels, files.contents = np.zeros(1, np.int64), [path.read_bytes()]
    [(images, _)] = open_batches(StreamedSplit("files", files, 8, COLOUR), 1, workers=0)
    assert images.isfinite().all()
    x, _ = Preprocessing(GREY).read(load_pillow(), path.read_bytes(), (8, 8))
    assert (x.shape, x.isfinite().all()) == ((1, 1, 8, 8), True)


def read_checkpoint(path):
    load_checkpoint(path)


def shard():
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w") as archive:
        for name, content in (("a.jpg", b"image"), ("a.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def image(form, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert(mode).save(stream := io.BytesIO(), form, **options, exif=exif)
    return stream.getvalue()


def checkpoint(packed):
    torch.manual_seed(0)
    return packed(create_model("lenet5bn", num_classes=2))


def pickled(model):
    torch.save(model.state_dict(), stream := io.BytesIO())
    return stream.getvalue()


def batch(protocol):
    return pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [np.int64(3)]}, protocol)


IDX = np.arange(30, dtype=np.uint8).reshape(2, 3, 5)
FILES = {  # name -> reader, content
    "images-idx3-ubyte": (read_idx, lambda: mnist.format_idx(IDX)),
    "images-idx3-ubyte.gz": (read_idx, lambda: mnist.compress_idx(IDX)),
    "batch of Python 2": (read_batch, lambda: python(np.zeros((1, 3072), np.uint8), np.array([3], np.uint8))),
    **{f"batch of protocol {protocol}": (read_batch, partial(batch, protocol)) for protocol in (2, 4, 5)},
    "cifar10.tar": (read_archive, lambda: tarred({"data_batch_1.bin": bytes(100)}, cifar.BINARY.folder)[:3072]),
    "shard.tar": (read_shard, shard),
    **{form: (read_image, partial(image, form)) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")},
    "RGBA.tif": (read_image, partial(image, "TIFF", "RGBA")),
    "P.gif": (read_image, partial(image, "GIF", "P", transparency=3)),
    "model.safetensors": (read_checkpoint, partial(checkpoint, lambda model: save(cpu_state(model)))),
    "model.pth": (read_checkpoint, partial(checkpoint, pickled)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_gives_a_result_or_one_line(name, tmp_path):
    reader, original = FILES[name][0], FILES[name][1]()
    path = tmp_path / name
    # Where most of a file is pixels or weights, the ends hold its structure.
    ends = st.integers(0, 999) | st.integers(len(original) - 300, len(original) - 1)

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(content=mutated(original, None if len(original) < 2000 else ends))
    def check(content):
        path.write_bytes(content)
        message = ""
        try:
            reader(path)
        except UserError as error:
            message = str(error)
        assert "\n" not in message

    check()

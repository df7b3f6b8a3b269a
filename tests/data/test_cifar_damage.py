"""CIFAR's pickles and archives from strangers: what they hold is read, what they ask for is not done."""

import gzip
import os
import pickle
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.cifar_files import arrays, python, tarred

from torchadder.data import cifar
from torchadder.errors import UserError


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", [b"u1", b"|u1"])
def test_pickled_arrays(fortran, dtype):
    images, labels = arrays()[0]
    found = cifar.read_python(python(images, labels, fortran=fortran, dtype=dtype), "batch")
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], labels)


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
        found = cifar._unpack(cifar.CIFAR10, path)
        assert found is None or set(found[2]) <= set(cifar.BINARY.md5)

"""Test that pickled arrays come back from every numpy and protocol, and that a pickle runs no code."""

import os
import pickle
import struct

import numpy as np
import pytest

from torchadder.data.pickled import load_arrays

VALUES = [
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    np.arange(3),
    np.arange(3, dtype=">i4"),
    np.linspace(0, 1, 4, dtype=np.float32),
    [np.int64(7), np.float32(0.5), 7],
]


@pytest.mark.parametrize("names", [b"numpy._core", b"numpy.core"])  # since numpy 2.0, before
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_back(protocol, names):
    content = pickle.dumps(tuple(VALUES), protocol)
    if protocol < 4:  # later protocols store the length of a name
        content = content.replace(b"numpy._core", names)
    found = load_arrays(content)
    for value, expected in zip(found, VALUES, strict=True):
        assert np.asarray(value).dtype == np.asarray(expected).dtype
        assert np.array_equal(np.asarray(value), expected)


class Code:
    def __reduce__(self):
        return os.mkdir, ("written",)


def changed(old, new):
    return pickle.dumps(np.arange(3, dtype=np.uint8), 2).replace(old, new)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": Code()}, 2), r"\w+.mkdir is not part of an array"),
        (pickle.dumps(np.array([Code()], dtype=object), 2), "is not part of an array|an array of 'O8'"),
        (pickle.dumps(np.random.default_rng(0), 2), "is not part of an array"),
        (pickle.dumps(slice(1)), "slice is not part of an array"),
        (b"\x80\x04X\x06\x00\x00\x00os\nos\nX\x05\x00\x00\x00mkdir\x93.", "mkdir is not part of an array"),
        *((changed(b"numpy\nndarray", name), "is not part") for name in (b"numpy\nload", b"builtins\neval")),
        (changed(b"_reconstruct", b"fromfile"), "fromfile is not part of an array"),
        (changed(b"u1", b"V9"), "an array of 'V9'"),
        (changed(b"u1", b"i2"), "buffer size must be a multiple"),
        (changed(b"K\x03\x85", b"K\x09\x85"), r"an array of shape \(9,\) in 3 bytes"),
        (b"\x80\x02Nr" + struct.pack("<I", 1 << 28) + b".", "memo index 268435456"),  # of two gibibytes
    ],
)
def test_anything_else_is_refused(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((pickle.UnpicklingError, ValueError), match=words):
        load_arrays(content)
    assert not [*tmp_path.iterdir()]

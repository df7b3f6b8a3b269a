"""The IDX reader: what it reads, and the one line that each damaged file gets."""

import gzip
import hashlib
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadder.data.idx import format_idx, parse_idx, read_idx, write_idx_gz
from torchadder.errors import UserError

ARRAY = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
PLAIN = format_idx(ARRAY)
PACKED = gzip.compress(PLAIN, mtime=0)


@pytest.mark.parametrize("shape", [(1,), (0,), (7,), (3, 28, 28), (2, 3, 5, 7)])
@pytest.mark.parametrize("write", [format_idx, write_idx_gz])
def test_reads_what_was_written(tmp_path, shape, write):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "file").write_bytes(write(array))
    digest = hashlib.md5(format_idx(array)).hexdigest()
    assert np.array_equal(read_idx(tmp_path / "file", md5=digest), array)


def test_same_array_gives_the_same_file():
    assert write_idx_gz(ARRAY) == write_idx_gz(ARRAY.copy())


DAMAGED = [  # content -> the words that the message must contain
    (b"", "truncated"),
    (b"\x00\x00\x08", "truncated"),
    (PLAIN[:10], "truncated inside the header"),
    (PLAIN[:-1], "truncated"),
    (PLAIN + b"\x00", "too long"),
    (b"\x00\x01" + PLAIN[2:], "magic 00010803"),
    (b"\x00\x00\x0d" + PLAIN[3:], "magic 00000d03"),  # float32
    (b"\x00\x00\x08\x00", "magic 00000800"),
    (b"<!DOCTYPE html><html>not found</html>", "magic"),
    (struct.pack(">HBB40I", 0, 8, 40, *[1] * 40) + b"\x07", "40 dimensions"),
    (
        struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        "truncated",
    ),  # no overflow, no allocation
    (PACKED[:-9], "truncated, the gzip stream"),
    (PACKED[:2], "truncated, the gzip stream"),
    (PACKED[:20] + bytes([PACKED[20] ^ 255]) + PACKED[21:], "corrupt gzip"),
    (PACKED[:-6] + bytes([PACKED[-6] ^ 255]) + PACKED[-5:], "corrupt gzip"),  # the checksum
    (PACKED + b"tail", "4 bytes follow"),
    (gzip.compress(PLAIN[:-1], mtime=0), "truncated, the header says"),
    (gzip.compress(PACKED, mtime=0), "magic 1f8b"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED)
def test_damaged_file_gets_one_line(tmp_path, content, words):
    path = tmp_path / "damaged-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_gets_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing: No such file"):
        read_idx(tmp_path / "nothing")


def test_other_content_gets_both_digests(tmp_path):
    (tmp_path / "file").write_bytes(PLAIN)
    with pytest.raises(UserError, match=rf"md5 {hashlib.md5(PLAIN).hexdigest()}, expected {'0' * 32}"):
        read_idx(tmp_path / "file", md5="0" * 32)


def test_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torchadder.data.idx.MAX_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes((1 << 20) + 1)))
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_idx(tmp_path / "bomb")


def mutated(original):
    """``original`` cut, extended, or with some bytes replaced."""
    replaced = st.dictionaries(st.integers(0, len(original) - 1), st.integers(0, 255), max_size=8)
    return st.builds(
        lambda cut, changes, tail: (
            bytes(changes.get(i, byte) for i, byte in enumerate(original))[: len(original) - cut] + tail
        ),
        st.integers(0, len(original)),
        replaced,
        st.binary(max_size=8),
    )


@settings(max_examples=300, deadline=None)
@given(content=mutated(PLAIN) | mutated(PACKED) | st.binary(max_size=200))
def test_fuzz_only_user_errors_come_out(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    with suppress(UserError):
        array = read_idx(path)
        assert array.dtype == np.uint8
        assert np.array_equal(parse_idx(format_idx(array), source="again"), array)

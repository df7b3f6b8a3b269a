"""The IDX format, in which MNIST is published: a uint8 array behind a small header, often gzipped."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from torchadder.errors import UserError

MAX_BYTES = 1 << 28  # no IDX file of this project is larger; stops a small gzip file from filling the memory
_UINT8 = 0x08


def read_idx(path: Path, *, md5: str | None = None) -> np.ndarray:
    """Read an IDX file, gzipped or plain, as a read-only uint8 array of the shape in its header.

    ``md5`` is the hexadecimal digest of the uncompressed bytes, checked when given.

    Raises UserError, one line that names the file, for anything unreadable: missing, truncated, corrupt gzip,
    wrong magic or element type, a length that contradicts the header, a digest that differs.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_idx(uncompress(raw, source=path), source=path, md5=md5)


def uncompress(raw: bytes, *, source: object) -> bytes:
    """The bytes inside a gzip file, or ``raw`` itself where it is none. Raises UserError as read_idx does."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = inflate.decompress(raw, MAX_BYTES + 1)
    except zlib.error as error:
        raise UserError(f"{source}: corrupt gzip data ({error}); replace the file") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{source}: more than {MAX_BYTES >> 20} MiB uncompressed, so it is no IDX file of ours")
    if not inflate.eof:
        raise UserError(f"{source}: truncated, the gzip stream ends too early; replace the file")
    if inflate.unused_data:
        raise UserError(f"{source}: corrupt, {len(inflate.unused_data)} bytes follow the gzip stream; replace it")
    return data


def parse_idx(data: bytes, *, source: object, md5: str | None = None) -> np.ndarray:
    """The array in the uncompressed bytes of an IDX file; ``source`` names them in errors. See read_idx."""
    if len(data) < 4:
        raise UserError(f"{source}: truncated, {len(data)} bytes are no IDX header; replace the file")
    zero, element, rank = struct.unpack(">HBB", data[:4])
    if zero != 0 or element != _UINT8 or rank == 0:
        raise UserError(f"{source}: no IDX file of bytes (magic {data[:4].hex()}, expected 000008 and a rank)")
    start = 4 + 4 * rank
    if len(data) < start:
        raise UserError(f"{source}: truncated inside the header of {rank} sizes; replace the file")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        size = " x ".join(map(str, shape))
        problem = "truncated" if len(data) - start < math.prod(shape) else "too long"
        raise UserError(
            f"{source}: {problem}, the header says {size} bytes and {len(data) - start} follow; replace the file"
        )
    if md5 is not None and (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{source}: not the published content (md5 {found}, expected {md5}); replace the file")
    if rank > 32:  # numpy 1 stops here
        raise UserError(f"{source}: {rank} dimensions, expected at most 32")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def format_idx(array: np.ndarray) -> bytes:
    """The uncompressed IDX bytes of a uint8 array."""
    if array.dtype != np.uint8:
        raise ValueError(f"IDX files here hold uint8, got {array.dtype}")
    header = struct.pack(f">HBB{array.ndim}I", 0, _UINT8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx_gz(array: np.ndarray) -> bytes:
    """The bytes of a gzipped IDX file, the same for the same array on every day."""
    return gzip.compress(format_idx(array), compresslevel=6, mtime=0)

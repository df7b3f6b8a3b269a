"""Read pickled numpy arrays, of any numpy and Python, in lists, tuples and dictionaries, and call nothing else."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

DTYPES = frozenset(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8))


def load_arrays(content: bytes) -> Any:
    """Return the value of a pickle, in which Array stands for an array; strings of Python 2 become bytes.

    Raises UnpicklingError for a name that arrays do not need, before it is looked up, and whatever a damaged pickle
    makes the unpickler raise.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and argument is not None and int(argument) > len(content):
            raise ValueError(f"memo index {argument}")  # The unpickler would allocate that much memory.
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class Array:
    """Hold a numpy array that the file describes in two steps, first an empty one, then its state."""

    def __init__(self, *ignored: Any):
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _array(content, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


class _Dtype:
    """Hold the name of a dtype of numbers, and its byte order."""

    def __init__(self, name: Any, *ignored: Any):
        self.name, self.order = name.decode() if isinstance(name, bytes) else name, "="
        if self.name not in DTYPES:
            raise ValueError(f"an array of {self.name!r}")

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] in (">", b">") else "<"


def _array(content: Any, dtype: _Dtype, shape: Sequence[int], order: Any) -> np.ndarray:
    values = np.frombuffer(content, f"{dtype.order}{dtype.name}")
    if values.size != np.prod(shape, dtype=object):
        raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
    return values.reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return _array(content, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # Python 3 writes bytes as such text where the protocol is Python 2's.


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): Array,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        builder = _BUILDERS.get((module.replace("numpy._core", "numpy.core"), name))
        if builder is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return lambda *arguments: builder(*arguments)  # A pickle could change the builder itself, for later files.

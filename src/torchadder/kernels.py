"""Load the native kernel library, choose its instruction set, and list its kernels.

The library starts with the best instruction set that the CPU can run. TORCHADDER_ISA=reference|avx2|avx512 in the
environment, or select(name), forces one. The number of threads is always torch.get_num_threads().
"""

import contextlib
import ctypes
import functools
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from .errors import UserError

SLOW = "the portable reference is correct and about 15 to 70 times slower"  # results/reference.json


class Convolution(ctypes.Structure):
    """Mirror torchadder_convolution of include/torchadder.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "c_in", "c_out", "groups")),
        *((name, ctypes.c_int64 * 3) for name in ("size_in", "size_out", "kernel", "stride", "padding", "dilation")),
        *((name, ctypes.c_int64) for name in ("weight_channels_last", "images_channels_first")),
    ]


def library_path() -> Path:
    """Return the path at which the native library was installed."""
    return Path(__file__).parent / "lib" / f"libtorchadder.{'dylib' if sys.platform == 'darwin' else 'so'}"


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library. It shares torch's OpenMP runtime. Raises UserError if it cannot be loaded."""
    path = library_path()
    if not path.is_file():
        raise UserError(f"the native library {path} is missing: reinstall torchadder")
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        if "libgomp" in str(error):
            cure = "install OpenMP (Debian, Ubuntu: apt install libgomp1)"
        else:
            cure = f"it was not built for this machine ({platform.machine()}) or is damaged: reinstall torchadder"
        raise UserError(f"the native library does not load ({error}): {cure}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    shape = ctypes.POINTER(Convolution)
    for name, arguments, result in (
        ("forward_f32", [shape, pointer, pointer, pointer, pointer, integer, integer], integer),
        ("grad_input_f32", [shape, pointer, pointer, pointer, pointer, integer, integer], integer),
        ("grad_weight_sign_f32", [shape, pointer, pointer, pointer, pointer, integer], integer),
        ("forward_u8", [shape, pointer, pointer, pointer, pointer, integer, integer], integer),
        ("grad_input_i16", [shape, pointer, pointer, pointer, pointer, integer], integer),
        ("transpose_f32", [pointer, pointer, *[ctypes.c_int64] * 3, integer], integer),
        ("isa_count", [], integer),
        ("isa_name", [integer], ctypes.c_char_p),
        ("isa_runs_here", [integer], integer),
        ("select_isa", [ctypes.c_char_p], integer),
        ("selected_isa", [], ctypes.c_char_p),
        ("selected_variant", [], ctypes.c_char_p),
        ("kernel_count", [], integer),
        ("kernel_name", [integer], ctypes.c_char_p),
        ("kernel_in_use", [integer], integer),
        ("has_threads", [], integer),
        ("last_error", [], ctypes.c_char_p),
    ):
        function = getattr(native, f"torchadder_{name}")
        function.argtypes, function.restype = arguments, result
    if native.torchadder_select_isa(None):  # what TORCHADDER_ISA names
        raise UserError(native.torchadder_last_error().decode())
    if is_slow(native.torchadder_selected_isa().decode()):
        reason = f"torchadder has no kernels for this CPU ({platform.machine()}): {SLOW}"
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
    return native


def is_slow(selected: str) -> bool:
    """Return whether the reference is selected and TORCHADDER_ISA does not ask for it."""
    return selected == "reference" and not os.environ.get("TORCHADDER_ISA")


def _load_before_fork() -> None:
    with contextlib.suppress(UserError):
        library()


# Only a loaded library makes torch's threads usable in a child that loads it later (native/common/threads.cpp).
os.register_at_fork(before=_load_before_fork)


def compiled() -> list[str]:
    """Return the instruction sets that the library was built with, the reference first."""
    native = library()
    return [native.torchadder_isa_name(i).decode() for i in range(native.torchadder_isa_count())]


def available() -> list[str]:
    """Return those of compiled() that this CPU can run."""
    native = library()
    return [name for i, name in enumerate(compiled()) if native.torchadder_isa_runs_here(i)]


def variants() -> list[str]:
    """Return arguments of select() that together reach every kernel that this CPU can run: for tests and benchmarks."""
    chosen = {name.split("_f32_")[1].split("_")[0] for name in names() if name.endswith(("_fma", "_add"))}
    return [name + addition for name in available() for addition in ((":fma", ":add") if name in chosen else ("",))]


def isa() -> str:
    """Return the name of the instruction set in use."""
    return library().torchadder_selected_isa().decode()


def variant() -> str:
    """Return the instruction set in use and how it computes forward passes: an argument of select(), "avx2:fma"."""
    return library().torchadder_selected_variant().decode()


def select(name: str) -> None:
    """Use one instruction set from now on, in the whole process; "" is the best. Raises UserError if it cannot run.

    "avx2:fma" and "avx2:add" also choose how partial results are summed, and "avx512:half" the kernels of AVX2 for
    forward passes; otherwise the way that was faster when all were timed, at the first use in a process. All give the
    same bits.
    """
    native = library()
    if native.torchadder_select_isa(name.encode()):
        raise UserError(native.torchadder_last_error().decode())


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Select ``name`` for the length of a with block."""
    before = variant()
    select(name)
    try:
        yield
    finally:
        select(before)


def names(in_use: bool = False) -> list[str]:
    """Return the names of all kernels, or of those that the instruction set in use chooses from."""
    native = library()
    return [
        native.torchadder_kernel_name(i).decode()
        for i in range(native.torchadder_kernel_count())
        if not in_use or native.torchadder_kernel_in_use(i)
    ]


def threads() -> int:
    """Return how many threads a kernel may use: torch's number, or 1 where the library was built without threads."""
    return torch.get_num_threads() if _has_threads() else 1


@functools.cache
def _has_threads() -> bool:
    return bool(library().torchadder_has_threads())

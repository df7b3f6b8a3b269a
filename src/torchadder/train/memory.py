"""Keep the memory of a training step for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

# of glibc's mallopt(): an option and its value. 32 MiB is the most that older versions accept.
_TRIM_THRESHOLD = -1, 1 << 30
_MMAP_THRESHOLD = -3, 32 << 20
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process, from now on, keep freed blocks of up to 32 MiB, and up to 1 GiB at the end of its heap.

    Otherwise glibc gives the tensors of a step back to the system, which returns them page by page in the next step.
    Does nothing without glibc, or where its own variables say what to keep.
    """
    is_set = any(name in os.environ for name in _VARIABLES)
    if sys.platform != "linux" or is_set or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(option, value)

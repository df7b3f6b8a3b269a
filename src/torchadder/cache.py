"""Where this library keeps files between runs."""

import os
from pathlib import Path


def folder() -> Path:
    """`torchadder` in $XDG_CACHE_HOME, or in ~/.cache; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "torchadder"

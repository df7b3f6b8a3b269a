"""Write a file so that it exists whole or not at all, also through a full disk or a kill at any moment."""

from __future__ import annotations

import os
from pathlib import Path

from torchadder.errors import UserError


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data``: temporary file beside it, fsync, rename.

    Raises OSError (full disk, no permission); ``path`` then keeps its old content.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_writable(out: Path, suffix: str) -> None:
    """Before minutes are spent. Raises UserError where --out cannot become a file that ends in ``suffix``."""
    if out.suffix != suffix:
        raise UserError(f"--out {out}: expected a name that ends in {suffix}")
    if out.is_dir():
        raise UserError(f"cannot write {out}: it is a folder")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: {out.parent} is no folder, create it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"cannot write {out}: no permission for {out.parent}")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # the rename itself reaches the disk with its folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Write files whole or not at all, check that a file can be written, and name the cache folder."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from torchadder.errors import UserError


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace the content of ``path`` by ``data``, also when the disk is full or the process is killed.

    Writes a temporary file of a new name in the same folder, calls fsync, then renames it. Raises OSError (full disk,
    no permission); ``path`` then keeps its old content. A killed process may leave a ``.torchadder-*.tmp``.

    A file keeps its permissions, and a symbolic link leads to the file that is written. A device or pipe is written to.
    """
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as device:  # a folder raises IsADirectoryError
            device.write(data)
        return
    temporary = path.with_name(f".torchadder-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            sync(f.fileno())
        if mode is not None:
            os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # The content is in place; not every file system can open and sync a folder.
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # The rename reaches the disk only when its folder does.
        finally:
            os.close(descriptor)


def sync(descriptor: int) -> None:
    """Write an open file to the disk, where its file system can do that. Raises OSError where the write fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def check_writable(path: Path, suffix: str | None = None, name: str = "out") -> None:
    """Check that a file can be written to ``path``, before long work whose result goes there. Creates nothing.

    Args:
        path: the file.
        suffix: the required end of its name, ".html" for example; None accepts any name.
        name: the parameter that holds the path, for messages.

    Raises UserError for another suffix, a folder at ``path``, a missing parent folder, and missing permission.
    """
    if suffix is not None and path.suffix != suffix:
        raise UserError(f"{name}={path}: expected a name that ends in {suffix}")
    if path.is_dir():
        raise UserError(f"{name}={path}: is a folder; choose another file name")
    if not path.parent.is_dir():
        raise UserError(f"{name}={path}: {path.parent} is no folder; create it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{name}={path}: no permission to write into {path.parent}; choose another folder")


def check_folder(folder: Path, name: str = "out") -> None:
    """Check that ``folder`` is, or can become, a folder for new files, before long work. Creates nothing.

    Raises UserError where it or a folder above it is a file, and where permission is missing.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        raise UserError(f"{name}={folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{name}={folder}: no permission to write into {existing}; choose another folder")


def cache_folder() -> Path:
    """Return the folder for files kept between runs, `torchadder` in $XDG_CACHE_HOME or ~/.cache; it may not exist.

    Raises UserError for a user without a home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "torchadder"
    except RuntimeError as error:
        raise UserError("no folder for a cache, because this user has no home: set HOME or XDG_CACHE_HOME") from error

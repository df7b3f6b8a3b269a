"""Find data files in data_dir, TORCHADDER_DATA and the cache, and fetch published files into the cache."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from torchadder import files
from torchadder.errors import UserError

TIMEOUT_S = 8
PROGRESS_S = 10  # Between two progress lines of a long download.

Content = TypeVar("Content")


class Archive(NamedTuple):
    """Describe a data set published as one file: its name, size in bytes, MD5, and the URLs of folders that have it."""

    name: str
    size: int
    md5: str
    mirrors: tuple[str, ...]


def cache_folder(dataset: str) -> Path:
    """Return the folder for fetched files of ``dataset``: torchadder/DATASET in $XDG_CACHE_HOME or ~/.cache."""
    return files.cache_folder() / dataset


def search_folders(data_dir: Path | None) -> list[Path]:
    """Return the folders to search, in order: ``data_dir`` alone, or without it TORCHADDER_DATA and the cache.

    Raises UserError where ``data_dir`` or TORCHADDER_DATA is no folder.
    """
    if data_dir is not None:
        return [_folder(data_dir, "data_dir")]
    variable = os.environ.get("TORCHADDER_DATA")
    return [*([_folder(Path(variable), "TORCHADDER_DATA")] if variable else []), *caches()]


def caches() -> list[Path]:
    """Return the cache folder of all data sets; nothing for a user without a home folder."""
    try:
        return [files.cache_folder()]
    except UserError:
        return []


def candidate_paths(name: str, data_dir: Path | None) -> list[Path]:
    """Return the paths that ``name`` may mean: below ``data_dir``, or the working directory and search_folders.

    An absolute path means only itself.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}: {error}; write the whole path") from error
    if path.is_absolute():
        return [path]
    return [root / path for root in ([Path()] if data_dir is None else []) + search_folders(data_dir)]


def fetch_archive(dataset: str, archive: Archive) -> Path | None:
    """Fetch the archive of ``dataset`` into the cache and return its path; None where no mirror has it.

    Reports progress on stderr. The archive is checked in memory and written whole, so that an interrupted download
    leaves nothing behind. Raises UserError where the cache cannot be written.
    """

    def published(mirror: str) -> bytes:
        content = download(dataset, url := f"{mirror}{archive.name}", archive.size)
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != archive.md5:
            size = f"{len(content):,} of {archive.size:,} bytes"
            raise UserError(f"{url}: not the published file ({size}, md5 {found}, expected {archive.md5})")
        return content

    path = cache_folder(dataset) / archive.name
    content = first_answer(dataset, f"{archive.name} ({archive.size / 2**20:.0f} MiB)", archive.mirrors, published)
    if content is None:
        return None
    keep(dataset, archive.name, {path: content})
    return path


def first_answer(dataset: str, what: str, mirrors: Sequence[str], read: Callable[[str], Content]) -> Content | None:
    """Return read(mirror) of the first mirror that has the published content, or None. Reports on stderr."""
    for mirror in mirrors:
        say(dataset, f"fetching {what} from {mirror}")
        try:
            return read(mirror)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors.
            say(dataset, f"no answer ({getattr(error, 'reason', None) or error})")
        except UserError as error:
            say(dataset, f"refused: {error}")
    return None


def download(dataset: str, url: str, limit: int) -> bytes:
    """Return the content of ``url``, with progress lines on stderr. Raises UserError above ``limit`` bytes."""
    content, said = io.BytesIO(), time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        while part := answer.read(1 << 18):
            content.write(part)
            if content.tell() > limit:
                raise UserError(f"{url}: not the published file (more than {limit:,} bytes)")
            if time.monotonic() - said > PROGRESS_S:
                say(dataset, f"{content.tell() >> 20} MiB so far")
                said = time.monotonic()
    return content.getvalue()


def keep(dataset: str, title: str, contents: Mapping[Path, bytes]) -> None:
    """Write files into the cache folder of ``dataset``. Raises UserError where that is not possible."""
    folder = cache_folder(dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            files.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {title} to {folder}: {error.strerror or error}") from error
    say(dataset, f"kept in {folder}")


def say(dataset: str, line: str) -> None:
    """Print a line about ``dataset`` on stderr."""
    print(f"{dataset}: {line}", file=sys.stderr, flush=True)


def _folder(path: Path, name: str) -> Path:
    if not path.is_dir():
        raise UserError(f"{name}={path} is no folder; create it, or name the folder with the data")
    return path

"""Load wds:SHARDS, WebDataset shards: tar files on this machine, streamed by an index of where each image lies."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchadder.data.fetch import candidate_paths
from torchadder.data.images import EXTENSIONS
from torchadder.data.registry import (
    Dataset,
    PackedNames,
    integer_option,
    normalization_option,
    parse_name,
    register,
    size_option,
)
from torchadder.errors import UserError

MAX_SHARDS = 100_000
MAX_CLASSES = 1_000_000
MAX_LABEL_BYTES = 32


@register("wds:SHARDS", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """Load "train-{000..146}.tar,test=val-{00..06}.tar,size=224,classes=1000,normalize=imagenet".

    Only the shards, for training and for testing, must be given. A sample is KEY.jpg (or .png, .webp and others) and
    KEY.cls, an integer from 0 in ASCII. classes= is the number of classes, by default the largest training label plus
    one.

    The headers of all shards are read once at the start; each image is then read from its position. All images are
    therefore shuffled together, and processes share shards of unequal length evenly.

    Relative names are looked for in ``data_dir``, or without it in the working directory, TORCHADDER_DATA and the
    cache.

    Raises UserError for shards that are missing, remote, compressed or damaged, samples without an image or a
    label, and labels out of range.
    """
    pattern, options = parse_name("wds", argument, ("test", "size", "classes", "normalize"))
    if "test" not in options:
        raise UserError(f"wds:{argument}: the shards for testing are missing, add test=SHARDS")
    train, test = (Shards(_find(shards, data_dir)) for shards in (pattern, options["test"]))
    given = integer_option(options, "classes", low=1, high=MAX_CLASSES)
    classes = given or min(int(train.labels.max()) + 1, MAX_CLASSES)
    return Dataset.streamed(
        f"wds:{argument}",
        classes,
        train,
        test,
        size=size_option(options),
        normalization=normalization_option(options),
        on_error=on_error,
    )


class Shards:
    """Read the images of shards, as a Source. Raises UserError where a shard cannot be read."""

    def __init__(self, paths: Sequence[Path]):
        samples = [sample for shard, path in enumerate(paths) for sample in _samples(path, shard)]
        if not samples:
            raise UserError(f"{paths[0]} holds no samples: expected KEY.jpg and KEY.cls")
        self.paths = paths
        self.labels = np.array([sample.label for sample in samples], np.int64)
        self._positions = np.array([(sample.shard, sample.offset, sample.size) for sample in samples], np.int64)
        self._keys = PackedNames(sample.key for sample in samples)

    def read(self, index: int) -> bytes:
        shard, offset, size = self._positions[index].tolist()
        with open(self.paths[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        return f"{self.paths[self._positions[index, 0]].name}: {self._keys[index]}"


def expand(pattern: str) -> list[str]:
    """Expand braces: "a-{00..02}.tar" to three names with two digits, "{a,b}.tar" to two names.

    Raises UserError for more than MAX_SHARDS names.
    """
    names = [""]
    for text, low, high, choices in re.findall(r"([^{}]+)|\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*)\}", pattern):
        numbers = range(int(low), int(high) + 1) if low else ()
        if len(names) * len(numbers) > MAX_SHARDS:
            raise UserError(f"{pattern} are more than {MAX_SHARDS:,} shards")
        parts = [f"{number:0{len(low)}}" for number in numbers] if low else [text] if text else choices.split(",")
        names = [name + part for name in names for part in parts]
    return names


def _find(pattern: str, data_dir: Path | None) -> list[Path]:
    if re.match(r"[a-z0-9]+:", pattern):
        raise UserError(f"{pattern} is not on this machine: copy the shards to a folder, or mount them, and name that")
    candidates = [candidate_paths(name, data_dir) for name in expand(pattern)]
    if not candidates:
        raise UserError(f"{pattern} stands for no shards: expected a range such as {{000..146}}")
    for paths in zip(*candidates, strict=True):  # The paths of all shards in one folder.
        if paths[0].is_file():
            if missing := [path for path in paths if not path.is_file()]:
                raise UserError(f"{len(missing):,} of {len(paths):,} shards are missing, the first is {missing[0]}")
            return list(paths)
    tried = " or ".join(map(str, candidates[0]))
    raise UserError(f"no shard {tried}: name the folder that they are in, or pass data_dir=DIR")


class _Sample(NamedTuple):
    """Describe a sample: its name, its label, and its image: number of the shard, first byte, and size in bytes."""

    key: str
    label: int
    shard: int
    offset: int
    size: int


def _samples(path: Path, shard: int) -> Iterator[_Sample]:
    """Iterate over the samples of a shard: neighbouring files whose names are the same up to the first dot."""
    try:
        with tarfile.open(path, "r:") as archive:
            for key, members in groupby(_files(archive), key=lambda member: _split(member.name)[0]):
                label = image = None
                for member in members:
                    extension = _split(member.name)[1]
                    if extension == ".cls":
                        label = _label(path, key, archive.extractfile(member).read(MAX_LABEL_BYTES))  # type: ignore[union-attr]
                    elif extension in EXTENSIONS:
                        if image:
                            raise UserError(f"{path}: sample {key} has two images: leave one of them")
                        image = member
                if label is None or image is None:
                    lacks = f"image ({', '.join(EXTENSIONS)})" if image is None else "label (.cls)"
                    raise UserError(f"{path}: sample {key} has no {lacks}")
                yield _Sample(key, label, shard, image.offset_data, image.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: no tar file that is whole and not compressed ({error}); replace it") from error


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Iterate over the regular files with a name and an extension; others are no part of a sample."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # TarFile would keep all of them in memory.
        if member.isreg() and not member.issparse() and all(_split(member.name)):
            yield member


def _split(name: str) -> tuple[str, str]:
    """Split a name at its first dot into key and extension in lower case; the key of ".name" is empty."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, extension = file.partition(".")
    return stem and folder + slash + stem, dot + extension.lower()


def _label(path: Path, key: str, content: bytes) -> int:
    if not re.fullmatch(rb"\s*\d{1,9}\s*", content):
        raise UserError(f"{path}: the label of {key} is {content!r}, expected an integer from 0")
    return int(content)

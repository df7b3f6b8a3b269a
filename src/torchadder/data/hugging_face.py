"""hf:NAME: a data set of the Hugging Face hub, or a folder of one, by their library `datasets`; it streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchadder.data.folders import candidates_of
from torchadder.data.options import normalization_of, parse, size_of
from torchadder.data.pixels import reason_of
from torchadder.data.registry import Dataset, register
from torchadder.errors import UserError

OPTIONS = ("config", "train", "test", "image", "label", "size", "normalize")
TEST = ("test", "validation", "valid", "val")


@register("hf:NAME", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """``argument`` is NAME, with options such as size=224,config=plain_text,image=img,label=fine_label,test=validation.

    NAME is a folder of image, parquet or arrow files as `datasets` reads or writes them, looked for in ``data_dir``
    where it is given, else in the working directory, TORCHADDER_DATA and the cache; otherwise a data set of the hub,
    fetched and kept where `datasets` keeps them. Without options the splits are train, and test or validation, and
    the columns the only one of images and the only one of class labels.

    Images are read one by one from memory-mapped files. Raises UserError where `datasets` is not installed, and for
    whatever it cannot load, for a split or column that is not there, and for labels out of range.
    """
    name, options = parse("hf", argument, OPTIONS)
    tables = _tables(name, options.get("config"), data_dir)
    splits = [_split(tables, "train", ["train"], options), _split(tables, "test", TEST, options)]
    features = tables[splits[0]].features
    image = _column(features, "image", "Image", options)
    label = _column(features, "label", "ClassLabel", options)
    sources = [Rows(tables[split], split, image, label) for split in splits]
    if sources[1].labels.min(initial=0) < 0:
        raise UserError(f"hf:{argument}: the labels of {splits[1]} are kept secret: name another split with test=")
    classes = getattr(features[label], "num_classes", None) or int(sources[0].labels.max()) + 1
    return Dataset.streamed(
        f"hf:{argument}",
        classes,
        *sources,
        size=size_of(options),
        normalization=normalization_of(options),
        on_error=on_error,
        classes=getattr(features[label], "names", None) or (),
    )


class Rows:
    """The rows of a table of `datasets` as a Source. Raises UserError where the labels are no whole numbers."""

    def __init__(self, table: Any, split: str, image: str, label: str):
        from datasets import Image  # type: ignore[import-not-found,import-untyped,unused-ignore]

        labels = table.with_format("numpy", columns=[label])[:][label]
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"column {label} holds no class numbers; name another with label=")
        self.labels = labels.astype(np.int64)
        self._split, self._image = split, image
        self._table = table.select_columns([image]).cast_column(image, Image(decode=False))

    def read(self, index: int) -> bytes:
        file = self._table[index][self._image]
        return Path(file["path"]).read_bytes() if file["bytes"] is None else file["bytes"]

    def name(self, index: int) -> str:
        return f"{self._split}[{index}]"


def _tables(name: str, config: str | None, data_dir: Path | None) -> Mapping[str, Any]:
    """The splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("hf: needs datasets, which is not installed: pip install 'torchadder[hf]'") from error
    folder = next((path for path in candidates_of(name, data_dir) if path.is_dir()), None)
    try:
        if folder is not None and (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(name if folder is None else str(folder), config)
    except Exception as error:  # its own errors are of every kind: no network, no such name, a damaged file
        raise UserError(f"hf:{name} cannot be loaded: {type(error).__name__}: {reason_of(error)}") from error


def _split(tables: Mapping[str, Any], option: str, usual: Sequence[str], options: Mapping[str, str]) -> str:
    """The name of the split that an option names, or without it the first of the usual ones that is there."""
    names = [options[option]] if option in options else usual
    for name in names:
        if name in tables:
            return name
    raise UserError(f"no split {' or '.join(names)}, there are: {', '.join(tables)}; name one with {option}=")


def _column(features: Mapping[str, Any], option: str, kind: str, options: Mapping[str, str]) -> str:
    """The column that an option names, or without it the only one whose feature is of that kind."""
    if option in options:
        if options[option] not in features:
            raise UserError(f"{option}={options[option]} is no column, there are: {', '.join(features)}")
        return options[option]
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) == 1:
        return found[0]
    raise UserError(f"which column is the {option}? Name it with {option}=; there are: {', '.join(features)}")

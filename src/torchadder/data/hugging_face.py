"""Load hf:NAME, a data set of the Hugging Face hub or a folder of one, with their library `datasets`, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchadder.data.fetch import candidate_paths
from torchadder.data.images import error_reason
from torchadder.data.registry import Dataset, normalization_option, parse_name, register, size_option
from torchadder.errors import UserError

OPTIONS = ("config", "train", "test", "image", "label", "size", "normalize")
TEST_SPLITS = ("test", "validation", "valid", "val")


@register("hf:NAME", options=("on_error",))
def load(argument: str, data_dir: Path | None = None, *, on_error: str = "stop") -> Dataset:
    """Load "cifar100,image=img,label=fine_label": NAME, with options after commas.

    NAME is a folder of image, parquet or arrow files that `datasets` can read, in ``data_dir``, or without it in the
    working directory, TORCHADDER_DATA or the cache; otherwise a data set of the hub, which `datasets` fetches and
    keeps. The options name the configuration (config=plain_text), the splits (train=, test=validation), the columns
    (image=, label=), the size (size=224) and the normalization (normalize=cifar). By default the splits are train, and
    test or validation; the columns are the only one of images and the only one of class labels.

    Images are read one by one from memory-mapped files. Raises UserError where `datasets` is not installed or cannot
    load NAME, for a missing split or column, and for labels out of range.
    """
    name, options = parse_name("hf", argument, OPTIONS)
    tables = _tables(name, options.get("config"), data_dir)
    splits = [_split(tables, "train", ["train"], options), _split(tables, "test", TEST_SPLITS, options)]
    features = tables[splits[0]].features
    image = _column(features, "image", "Image", options)
    label = _column(features, "label", "ClassLabel", options)
    sources = [Rows(tables[split], split, image, label) for split in splits]
    if sources[1].labels.min(initial=0) < 0:
        raise UserError(f"hf:{argument}: the labels of {splits[1]} are hidden: name another split with test=")
    classes = getattr(features[label], "num_classes", None) or int(sources[0].labels.max()) + 1
    return Dataset.streamed(
        f"hf:{argument}",
        classes,
        *sources,
        size=size_option(options),
        normalization=normalization_option(options),
        on_error=on_error,
        classes=getattr(features[label], "names", None) or (),
    )


class Rows:
    """Read the rows of a table of `datasets`, as a Source. Raises UserError where the labels are no integers."""

    def __init__(self, table: Any, split: str, image: str, label: str):
        from datasets import Image  # type: ignore[import-not-found,import-untyped,unused-ignore]

        labels = table.with_format("numpy", columns=[label])[:][label]
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"column {label} holds no integers; name another with label=")
        self.labels = labels.astype(np.int64)
        self._split, self._image = split, image
        self._table = table.select_columns([image]).cast_column(image, Image(decode=False))

    def read(self, index: int) -> bytes:
        file = self._table[index][self._image]
        return Path(file["path"]).read_bytes() if file["bytes"] is None else file["bytes"]

    def name(self, index: int) -> str:
        return f"{self._split}[{index}]"


def _tables(name: str, config: str | None, data_dir: Path | None) -> Mapping[str, Any]:
    """Return the tables of all splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("hf: needs datasets, which is not installed: pip install 'torchadder[hf]'") from error
    folder = next((path for path in candidate_paths(name, data_dir) if path.is_dir()), None)
    try:
        if folder is not None and (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(name if folder is None else str(folder), config)
    except Exception as error:  # `datasets` raises many types, for a missing network, a wrong name, a damaged file.
        raise UserError(f"hf:{name} cannot be loaded: {type(error).__name__}: {error_reason(error)}") from error


def _split(tables: Mapping[str, Any], option: str, usual: Sequence[str], options: Mapping[str, str]) -> str:
    """Return the split that an option names, or without it the first of the usual ones that is there."""
    names = [options[option]] if option in options else usual
    for name in names:
        if name in tables:
            return name
    raise UserError(f"no split {' or '.join(names)}, there are: {', '.join(tables)}; name one with {option}=")


def _column(features: Mapping[str, Any], option: str, kind: str, options: Mapping[str, str]) -> str:
    """Return the column that an option names, or without it the only one whose feature is of that kind."""
    if option in options:
        if options[option] not in features:
            raise UserError(f"{option}={options[option]} is no column, there are: {', '.join(features)}")
        return options[option]
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) == 1:
        return found[0]
    raise UserError(f"which column is the {option}? Name it with {option}=; there are: {', '.join(features)}")

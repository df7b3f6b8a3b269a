"""Data sets whole in memory: found, checked, normalised, and served in batches on the training device."""

from torchadder.data import cifar, mnist  # noqa: F401  importing a data set registers its name
from torchadder.data.batches import Batches
from torchadder.data.registry import Dataset, Split, list_datasets, load_dataset

__all__ = ["Batches", "Dataset", "Split", "list_datasets", "load_dataset"]

"""Data sets whole in memory: found, checked, normalised, and served in batches on the training device."""

from torchadder.data import cifar, fashion_mnist, imagefolder, mnist  # noqa: F401  importing one registers its name
from torchadder.data.augment import Augmentation
from torchadder.data.batches import Batches, Share
from torchadder.data.registry import Dataset, Split, list_datasets, load_dataset

__all__ = ["Augmentation", "Batches", "Dataset", "Share", "Split", "list_datasets", "load_dataset"]

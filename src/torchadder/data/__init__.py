"""Data sets in memory or streamed: found, checked, normalised, and served in batches on the training device."""

from torchadder.data import (  # noqa: F401  importing one registers its name
    cifar,
    fashion_mnist,
    hugging_face,
    imagefolder,
    imagenet,
    mnist,
    shards,
)
from torchadder.data.augment import Augmentation, RandomResizedCrop
from torchadder.data.batches import Batches, Loader, Share
from torchadder.data.registry import Dataset, Split, StreamedSplit, list_datasets, load_dataset
from torchadder.data.streamed import open_batches

__all__ = [
    "Augmentation",
    "Batches",
    "Dataset",
    "Loader",
    "RandomResizedCrop",
    "Share",
    "Split",
    "StreamedSplit",
    "list_datasets",
    "load_dataset",
    "open_batches",
]

"""Load data sets by name, in memory or streamed, and serve them in batches on the training device."""

from torchadder.data import (  # noqa: F401  importing a module registers its data sets
    cifar,
    hugging_face,
    imagefolder,
    imagenet,
    mnist,
    webdataset,
)
from torchadder.data.images import Augmentation, RandomResizedCrop
from torchadder.data.loader import Batches, Loader, Share
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

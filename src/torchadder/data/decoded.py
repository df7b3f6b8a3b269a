"""Image files as one uint8 tensor a split: decoded by Pillow in threads, then kept in the cache for the next start."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchadder.data.folders import cache_folder
from torchadder.data.pixels import Damaged, load_pillow, open_image, reason_of
from torchadder.errors import UserError

MAX_BYTES = 1 << 31  # of decoded pixels: what a training process may well hold
OTHER_SIZE = "the first image has"  # in the reason of an image that has another
PART = 256  # images that a thread decodes in a row
THREADED_PIXELS = 128 * 128  # in smaller images Python's own part is the longer one, and threads only wait for it
VERSION = 1  # another one whenever the same files come to other pixels: what is in the cache is then no longer read


class ImageFile(NamedTuple):
    """An image file below a folder, its label, and what shows that it was replaced."""

    path: str
    label: int
    size: int
    mtime_ns: int


class Decoded(NamedTuple):
    """By split the pixels uint8 (N, 3, H, W) and the labels int64 (N,), without the images that are damaged.

    ``statistics``: mean and standard deviation of each channel over all training pixels, 0 to 1.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    statistics: tuple[list[float], list[float]]
    damaged: list[Damaged]


def read(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> Decoded:
    """The images of ``files``, split -> files below ``folder``; "train" is one of them. See Decoded.

    They come from the cache where these very files (names, labels, sizes, times) were decoded before. Says on stderr
    when it decodes. Raises UserError where Pillow is missing, a split has no image that decodes, or all of them take
    more than MAX_BYTES.
    """
    kept = cache_folder("imagefolder") / f"{_digest(files)}.safetensors"
    if (images := _load(kept)) is not None:
        return images
    count = sum(map(len, files.values()))
    _say(f"decoding {count:,} images of {folder}")
    start = time.perf_counter()
    images = _decode(folder, files)
    seconds = time.perf_counter() - start
    _say(f"{count:,} images in {seconds:.1f} s ({count / seconds:,.0f} a second)")
    _save(images, kept)
    return images


def _decode(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> Decoded:
    pillow = load_pillow()
    size = _first_size(pillow, folder, files["train"])
    total = sum(map(len, files.values())) * 3 * math.prod(size)
    if total > MAX_BYTES:
        raise UserError(
            f"{folder}: {sum(map(len, files.values())):,} images of {size[0]} x {size[1]} are {total / 2**30:,.1f} GiB "
            f"decoded, and at most {MAX_BYTES / 2**30:g} GiB are held in memory: "
            f"take fewer or smaller images, or stream them with imagefolder:{folder},size=224"
        )
    splits, damaged = {}, []
    workers = torch.get_num_threads() if math.prod(size) >= THREADED_PIXELS else 1
    with ThreadPoolExecutor(workers) as threads:
        for split, listed in files.items():
            pixels = np.empty((len(listed), 3, size[1], size[0]), np.uint8)
            parts = [range(i, min(i + PART, len(listed))) for i in range(0, len(listed), PART)]
            decode = partial(_decode_part, pillow, folder, listed, pixels)
            reasons = {i: reason for found in threads.map(decode, parts) for i, reason in found.items()}
            if len(reasons) == len(listed):
                raise UserError(f"{folder}: none of the {len(listed):,} images of {split} can be used ({reasons[0]})")
            good = [i for i in range(len(listed)) if i not in reasons]
            labels = torch.tensor([listed[i].label for i in good])
            splits[split] = (torch.from_numpy(pixels[good] if reasons else pixels), labels)
            damaged += [Damaged(listed[i].path, reason) for i, reason in reasons.items()]
    return Decoded(splits, _statistics(splits["train"][0]), damaged)


def _first_size(pillow: ModuleType, folder: Path, files: Sequence[ImageFile]) -> tuple[int, int]:
    """Width and height of the first image whose header can be read."""
    reason = ""
    for file in files:
        try:
            with open_image(pillow, folder / file.path) as image:
                return image.size
        except Exception as error:  # a damaged image fails in every way there is
            reason = reason or reason_of(error)
    raise UserError(f"{folder}: none of the {len(files):,} images of train can be used ({reason})")


def _decode_part(
    pillow: ModuleType, folder: Path, files: Sequence[ImageFile], pixels: np.ndarray, part: range
) -> dict[int, str]:
    """Fill pixels[part]; the index -> reason of each image that cannot be used."""
    size = pixels.shape[3], pixels.shape[2]
    reasons = {}
    for i in part:
        try:
            with open_image(pillow, folder / files[i].path) as image:
                if image.size != size:  # known from the header: a huge one is not decoded
                    raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, {OTHER_SIZE} {size[0]} x {size[1]}")
                pixels[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except Exception as error:  # a damaged image fails in every way there is
            reasons[i] = reason_of(error)
    return reasons


def _statistics(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), 0 to 1, from exact counts of its values."""
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.float64)
    for part in pixels.split(1024):
        counts += torch.stack([part[:, c].flatten().bincount(minlength=256) for c in range(len(counts))])
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a channel of one value: nothing to scale
    return mean.tolist(), std.tolist()


def _digest(files: Mapping[str, Sequence[ImageFile]]) -> str:
    about = [VERSION, [[split, listed] for split, listed in files.items()]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _load(path: Path) -> Decoded | None:
    """What _save wrote; None where there is nothing, or a file that was damaged since."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["decoded"])
            splits = {
                split: (file.get_tensor(f"{split}.pixels"), file.get_tensor(f"{split}.labels"))
                for split in about["splits"]
            }
        return Decoded(splits, about["statistics"], [Damaged(*damaged) for damaged in about["damaged"]])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        _say(f"{path} is damaged ({error}); it is made anew")
        return None


def _save(images: Decoded, path: Path) -> None:
    """Keep ``images`` for the next start. A full disk only costs the time to decode them again."""
    tensors: dict[str, Tensor] = {}
    for split, (pixels, labels) in images.splits.items():
        tensors |= {f"{split}.pixels": pixels, f"{split}.labels": labels}
    about = {"splits": [*images.splits], "statistics": images.statistics, "damaged": images.damaged}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several processes may start at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"decoded": json.dumps(about)})
        os.replace(temporary, path)
        _say(f"kept in {path}")
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _say(f"cannot keep them in {path.parent} ({error}); the next start decodes them again")


def _say(line: str) -> None:
    print(f"imagefolder: {line}", file=sys.stderr, flush=True)

"""Decode image files with Pillow, and crop and mirror images, as tensors or while they are decoded."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")
MODES = {"1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr"}  # Pillow's modes of at most 8 bits a channel.
CENTRE = 224 / 256  # A centre crop takes this part of the shorter side: 224 pixels of an image resized to 256.
MAX_LISTED = 10  # Damaged images named in one message.


class Damaged(NamedTuple):
    """Name an image that cannot be used, and the reason."""

    path: str
    reason: str


class Crop(NamedTuple):
    """Describe the used part of an image: (left, upper, right, lower) edges in pixels, and whether it is mirrored."""

    box: tuple[float, float, float, float]
    mirrored: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Crop a batch at random places of the images padded with ``padding`` black pixels; mirror half of them.

    The choices are drawn on the CPU, apart from their use, so that a seed gives the same images on every device.
    """

    padding: int = 4

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the choices for ``count`` images: int64 (3, count) of first row, first column, and 1 to mirror."""
        corner = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (1, count), generator=generator)
        return torch.cat([corner, mirrored])

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        """Return ``images`` (N, C, H, W), in which 0 is black, augmented by ``choices`` (3, N)."""
        top, left, mirrored = choices
        height, width = images.shape[2:]
        padded = F.pad(images, (self.padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # A view of all possible crops.
        crops = windows[torch.arange(len(images), device=images.device), :, top, left]
        return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(3), crops)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Take a part of random area and shape at a random place of an image; mirror half of them.

    ``scale``: bounds of its share of the image's area. ``ratio``: bounds of width / height, drawn uniformly on a
    logarithmic scale. Source: Szegedy et al., "Going deeper with convolutions", 2015.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, width: int, height: int, generator: random.Random) -> Crop:
        """Draw the crop of an image of that size: the first of ten that fits, else the largest one in the middle."""
        mirrored = generator.random() < 0.5
        for _ in range(10):
            area = width * height * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, upper = generator.randint(0, width - w), generator.randint(0, height - h)
                return Crop((left, upper, left + w, upper + h), mirrored)
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        left, upper = (width - w) // 2, (height - h) // 2
        return Crop((left, upper, left + w, upper + h), mirrored)


def centre_crop(width: int, height: int) -> Crop:
    """Return the square in the middle of an image of that size, used for testing."""
    side = CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return Crop((left, upper, left + side, upper + side))


def load_pillow() -> ModuleType:
    """Return PIL.Image. Raises UserError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            "images are decoded by Pillow, which is not installed: pip install 'torchadder[images]'"
        ) from error
    return Image


def open_image(pillow: ModuleType, file: Any) -> Any:
    """Open an image file, a path or a stream, and read its header only. ``pillow``: PIL.Image.

    Raises ValueError for more than 8 bits a channel, and whatever Pillow raises.
    """
    opened = pillow.open(file, formats=FORMATS)
    if opened.mode not in MODES:
        opened.close()
        raise ValueError(f"mode {opened.mode}, expected at most 8 bits a channel")
    return opened


def decode_crop(pillow: ModuleType, content: bytes, crop: Callable[[int, int], Crop], size: int) -> np.ndarray:
    """Decode the bytes of an image file and resize a part of it to RGB, uint8 (3, size, size).

    ``crop``: maps width and height of the image to its part. A JPEG that shrinks to half its size or less is decoded
    at reduced size, which is faster. Raises as open_image.
    """
    with open_image(pillow, io.BytesIO(content)) as opened:
        width, height = opened.size
        (left, upper, right, lower), mirrored = crop(width, height)
        opened.draft(None, (int(width * size / (right - left)), int(height * size / (lower - upper))))
        w, h = opened.size  # Smaller than (width, height) where draft has reduced it.
        rgb = opened if opened.mode == "RGB" else opened.convert("RGB")
        box = (left * w / width, upper * h / height, min(right * w / width, w), min(lower * h / height, h))
        pixels = np.asarray(rgb.resize((size, size), pillow.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if mirrored else pixels


def error_reason(error: Exception) -> str:
    """Return the text of an error as one line of at most 100 characters, without the path of a file."""
    # The text may hold bytes of a damaged file: line breaks are replaced, and it is cut.
    text = getattr(error, "strerror", None) or str(error).partition(" '")[0].partition(" <_io")[0]
    return " ".join(text.split())[:100] or type(error).__name__


def list_damaged(damaged: Iterable[Damaged]) -> str:
    """Return the first ten damaged images with their reasons as text, and the number of further ones."""
    names = [f"{path} ({reason})" for path, reason in damaged]
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more

"""The pixels of one image file, by Pillow: RGB of 8 bits, and whatever is wrong with the file in one line."""

from __future__ import annotations

import io
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from torchadder.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")
NAMED = 10  # images in one message; the count is of all
MODES = {"1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr"}  # of 8 bits at most: what RGB can hold


class Damaged(NamedTuple):
    """An image that cannot be used, and why."""

    path: str
    reason: str


class Crop(NamedTuple):
    """The part of an image that is used: left, upper, right and lower edge in pixels, and whether it is mirrored."""

    box: tuple[float, float, float, float]
    mirrored: bool = False


def load_pillow() -> ModuleType:
    """PIL.Image. Raises UserError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            "images are decoded by Pillow, which is not installed: pip install 'torchadder[images]'"
        ) from error
    return Image


def open_image(image: ModuleType, file: Any) -> Any:
    """An image whose header is read and whose pixels are not. ``image``: PIL.Image. ``file``: a path or a stream.

    Raises ValueError for one of more than 8 bits a channel, and whatever Pillow raises.
    """
    opened = image.open(file, formats=FORMATS)
    if opened.mode not in MODES:
        opened.close()
        raise ValueError(f"mode {opened.mode}, expected at most 8 bits a channel")
    return opened


def cropped(image: ModuleType, content: bytes, crop: Any, size: int) -> np.ndarray:
    """uint8 (3, size, size) from the bytes of an image file. ``crop``: its width and height -> Crop.

    A JPEG that is shrunk to a half or less is decoded at that size in the first place. Raises as open_image.
    """
    with open_image(image, io.BytesIO(content)) as opened:
        width, height = opened.size
        (left, upper, right, lower), mirrored = crop(width, height)
        opened.draft(None, (int(width * size / (right - left)), int(height * size / (lower - upper))))
        w, h = opened.size  # smaller where it is decoded smaller
        rgb = opened if opened.mode == "RGB" else opened.convert("RGB")
        box = (left * w / width, upper * h / height, min(right * w / width, w), min(lower * h / height, h))
        pixels = np.asarray(rgb.resize((size, size), image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if mirrored else pixels


def reason_of(error: Exception) -> str:
    """The text of an error in one short line without the file's path; the file has a say in it."""
    text = getattr(error, "strerror", None) or str(error).partition(" '")[0].partition(" <_io")[0]
    return " ".join(text.split())[:100] or type(error).__name__


def listed(damaged: Iterable[Damaged]) -> str:
    """A few of them in words, and how many more there are."""
    names = [f"{path} ({why})" for path, why in damaged]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

"""Decode image files with Pillow, upright and opaque; crop and mirror images, as tensors or while they are decoded."""

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

from torchadder.errors import UserError, shortened

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")  # Pillow's names of them.
TITLES = "JPEG, PNG, WebP, GIF, BMP, TIFF, PGM or PPM"
MODES = {"1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr"}  # Pillow's modes of at most 8 bits a channel.
MODES_16 = {"I;16", "I;16B", "I;16L"}
ORIENTATION = 0x0112  # The EXIF tag that says how a camera was held.
CENTRE = 224 / 256  # A centre crop takes this part of the shorter side: 224 pixels of an image resized to 256.
MAX_LISTED = 10  # Files named in one message.


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
    """Crop a batch at random places of the images padded with ``padding`` black pixels; ``mirror`` half of them.

    ``black``: the value of a black pixel. The choices are drawn on the CPU, apart from their use, so that a seed gives
    the same images on every device.
    """

    padding: int = 4
    mirror: bool = True
    black: float = 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the choices for ``count`` images: int64 (3, count) of first row, first column, and 1 to mirror."""
        corner = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 1 + self.mirror, (1, count), generator=generator)
        return torch.cat([corner, mirrored])

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        """Return ``images`` (N, C, H, W) augmented by ``choices`` (3, N)."""
        top, left, mirrored = choices
        height, width = images.shape[2:]
        padded = F.pad(images, (self.padding,) * 4, value=self.black)
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

    The content decides on the format, whatever the name. Raises ValueError for more than 16 bits a channel, and
    whatever Pillow raises.
    """
    opened = pillow.open(file, formats=FORMATS)
    if opened.mode not in MODES and not _has_16_bits(opened):
        opened.close()
        raise ValueError(f"mode {opened.mode}, expected grey, RGB, CMYK or a palette of at most 16 bits")
    return opened


def is_image(pillow: ModuleType, path: str) -> bool:
    """Return whether a file is an image of a known format, whatever its name."""
    try:
        with pillow.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow raises many types for other files.
        return False


def upright_size(image: Any) -> tuple[int, int]:
    """Return width and height of an opened image as it is shown, after the turn that its EXIF orientation asks for."""
    if image.format not in ("JPEG", "MPO"):
        _turn(image)  # Other formats may store the orientation after the pixels.
        return image.size
    return image.size[::-1] if _orientation(image) > 4 else image.size


def convert(pillow: ModuleType, image: Any, mode: str) -> Any:
    """Return an opened image upright, opaque and in ``mode``, "L" or "RGB".

    A transparent image gets a ground that its visible pixels stand out from: black where they are light on average,
    else white. Of 16 bits the upper 8 are kept. Raises ValueError where no pixel is visible.
    """
    _turn(image)
    if _has_16_bits(image):
        image = _upper_bits(pillow, image)
    if "A" in image.mode or "transparency" in image.info:
        coloured = image.convert("RGBA")
        alpha = np.asarray(coloured.getchannel("A"))
        if not alpha.any():
            raise ValueError("every pixel is transparent")
        light = np.average(np.asarray(coloured.convert("L")), weights=alpha) >= 128
        ground = pillow.new("RGBA", image.size, "black" if light else "white")
        image = pillow.alpha_composite(ground, coloured).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _turn(image: Any) -> None:
    """Decode an image, and turn it in place as its EXIF orientation asks for."""
    from PIL import ImageOps

    image.load()
    if _orientation(image) > 1:
        ImageOps.exif_transpose(image, in_place=True)


def _orientation(image: Any) -> int:
    """Return the EXIF orientation, 1 to 8; 1, which is upright, where the image has none that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Metadata is damaged more often than pixels are.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_16_bits(image: Any) -> bool:
    return image.mode in MODES_16 or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _upper_bits(pillow: ModuleType, image: Any) -> Any:
    """Return a grey image of 16 bits with the upper 8 of them, as Pillow decodes colour images of 16 bits."""
    values = np.asarray(image)
    grey = pillow.fromarray((values >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(pillow.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def decode_crop(pillow: ModuleType, content: bytes, crop: Callable[[int, int], Crop], size: int) -> np.ndarray:
    """Decode the bytes of an image file and resize a part of it to RGB, uint8 (3, size, size).

    ``crop``: maps width and height of the image to its part. A JPEG that shrinks to half its size or less is decoded
    at reduced size, which is faster. Raises as open_image and convert.
    """
    with open_image(pillow, io.BytesIO(content)) as opened:
        width, height = upright_size(opened)
        (left, upper, right, lower), mirrored = crop(width, height)
        needed = (int(width * size / (right - left)), int(height * size / (lower - upper)))
        opened.draft(None, needed if opened.size == (width, height) else needed[::-1])
        rgb = convert(pillow, opened, "RGB")
        w, h = rgb.size  # Smaller than (width, height) where draft has reduced it.
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
    return shortened([f"{path} ({reason})" for path, reason in damaged], shown=MAX_LISTED)

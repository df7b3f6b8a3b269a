"""Preprocess an image file in the same way as the test images of a data set; a .tadder file keeps the settings."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.data.images import centre_crop, convert, decode_crop, open_image, upright_size
from torchadder.data.registry import Dataset, Normalization, StreamedSplit

MODES = {1: "L", 3: "RGB"}  # Number of channels -> Pillow's mode.
WHOLE, CENTRE = "whole", "centre"


@dataclass(frozen=True)
class Preprocessing:
    """Resize an image to the size of the network's input, and normalise its pixels.

    ``part``: "whole" resizes an image of another size, bilinear, as for MNIST; "centre" takes the centre crop of every
    image, as streamed data sets do.
    """

    normalization: Normalization
    part: str = WHOLE

    @classmethod
    def of(cls, dataset: Dataset) -> Preprocessing | None:
        """Return the preprocessing of the test images; None where the data set does not say how they are normalised."""
        normalization = dataset.test.normalization or dataset.normalization
        part = CENTRE if isinstance(dataset.test, StreamedSplit) else WHOLE
        return normalization and cls(normalization, part)

    @classmethod
    def from_dict(cls, about: Mapping[str, Any], channels: int) -> Preprocessing:
        """Make a Preprocessing from the result of to_dict. Raises ValueError that says what is wrong in ``about``."""
        numbers = []
        for name in ("mean", "std"):
            if not isinstance(text := about.get(name), str):
                raise ValueError(f"it does not say the {name} of the pixels")
            numbers.append([float(number) for number in text.split()])
            if len(numbers[-1]) != channels or not all(math.isfinite(number) for number in numbers[-1]):
                raise ValueError(f"{name} is {text[:100]!r}, expected {channels} numbers")
        if min(numbers[1]) <= 0:
            raise ValueError(f"std is {about['std'][:100]!r}, expected numbers above 0")
        if channels not in MODES or about.get("mode") != MODES[channels]:
            raise ValueError(f"its images are {about.get('mode')!r} with {channels} channels")
        if about.get("part") not in (WHOLE, CENTRE):
            raise ValueError(f"part is {about.get('part')!r}, expected {WHOLE} or {CENTRE}")
        return cls(Normalization.of(*numbers), about["part"])

    def to_dict(self) -> dict[str, str]:
        """Return mode (Pillow's), mean and std (a number for each channel, separated by spaces), and part."""
        mean, std = (" ".join(str(number) for number in values.flatten().numpy()) for values in self.normalization)
        return {"mode": MODES[len(self.normalization.mean)], "mean": mean, "std": std, "part": self.part}

    def read(
        self, pillow: ModuleType, content: bytes, size: tuple[int, int], invert: bool = False
    ) -> tuple[Tensor, tuple[int, int]]:
        """Read an image file as float32 (1, C, *size); return it with the height and width of the file.

        ``invert`` exchanges light and dark. Raises as images.open_image and images.convert.
        """
        # Pillow warns about metadata, which is not used here.
        with warnings.catch_warnings(action="ignore"), open_image(pillow, io.BytesIO(content)) as image:
            height_width = upright_size(image)[::-1]
            if self.part == CENTRE:
                pixels = decode_crop(pillow, content, centre_crop, size[0])
            else:
                mode = MODES[len(self.normalization.mean)]
                pixels = np.atleast_3d(np.asarray(convert(pillow, image, mode))).transpose(2, 0, 1)
        return self.prepare(255 - pixels if invert else pixels, size), height_width

    def opposite_ground(self, x: Tensor) -> str | None:
        """Say that a grey image, as ``read`` returns it, is light where the training images are dark, or the reverse.

        The mean of the training pixels tells their ground where it is below a quarter (MNIST: 0.13) or above three
        quarters; an image is on the other side where its mean is beyond the middle. None where that is not so.
        """
        if len(self.normalization.mean) != 1:
            return None
        mean, std = (values.item() for values in self.normalization)
        light = x.mean().item() * std + mean > 0.5
        if not (mean < 0.25 if light else mean > 0.75):
            return None
        ground, other = ("light", "dark") if light else ("dark", "light")
        return f"drawn on a {ground} ground, the training images on a {other} one"

    def prepare(self, pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Return pixels uint8 (C, H, W) resized and normalised, float32 (1, C, *size)."""
        x = torch.from_numpy(pixels.astype(np.float32))[None]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return self.normalization.in_place(x)
